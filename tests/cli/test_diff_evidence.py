# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx diff`` of an image with a quote or a prediction: which order of calls made an MRTD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swtdx.attest.measure import measure_image
from swtdx.image.mrtd import Order
from testing.tdvf_image import image_with
from tests.attest.test_evidence import LOG, quote_with
from tests.cli.conftest import Command


@pytest.mark.parametrize("order", Order)
def test_the_order_of_calls_that_made_an_mrtd(tmp_path: Path, command: Command, order: Order) -> None:
    image, quote = tmp_path / "x.fd", tmp_path / "quote.bin"
    image.write_bytes(image_with())
    quote.write_bytes(quote_with(LOG, measure_image(image_with(), order=order).mrtd))
    for pair in ((image, quote), (quote, image)):
        done = command("diff", *pair)
        assert done.status == 0
        assert f"its calls {order.value}." in done.out


def test_an_mrtd_that_no_order_of_calls_makes(tmp_path: Path, command: Command) -> None:
    image, quote = tmp_path / "x.fd", tmp_path / "quote.bin"
    image.write_bytes(image_with())
    quote.write_bytes(quote_with(LOG))
    done = command("diff", image, quote)
    assert done.status == 2
    assert "No order of calls makes this MRTD" in done.out


def test_a_prediction_in_json_is_evidence(tmp_path: Path, command: Command) -> None:
    image, quote, predicted = (tmp_path / name for name in ("x.fd", "quote.bin", "predicted.json"))
    image.write_bytes(image_with())
    predicted.write_text(command("measure", image, "--json").out)
    quote.write_bytes(quote_with(LOG, measure_image(image_with()).mrtd))
    done = command("diff", predicted, quote, "--json")
    assert (done.status, json.loads(done.out)["compared"]) == (0, ["MRTD"])
