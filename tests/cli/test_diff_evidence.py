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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["prediction", "quote"])
def test_text_in_the_encodings_that_shells_write(tmp_path: Path, command: Command, encoding: str, form: str) -> None:
    """PowerShell writes UTF-16 with a byte order mark, and some editors UTF-8 with one."""
    image, quote, text = (tmp_path / name for name in ("x.fd", "quote.bin", "text"))
    image.write_bytes(image_with())
    quote.write_bytes(quote_with(LOG, measure_image(image_with()).mrtd))
    content = command("measure", image, "--json").out if form == "prediction" else quote.read_bytes().hex()
    text.write_bytes(content.encode(encoding))
    for pair in ((text, quote), (image, text)):
        done = command("diff", *pair, "--json")
        assert (done.status, done.err) == (0, "")
        assert "MRTD" in json.loads(done.out)["compared"]


def test_a_prediction_in_json_is_evidence(tmp_path: Path, command: Command) -> None:
    image, quote, predicted = (tmp_path / name for name in ("x.fd", "quote.bin", "predicted.json"))
    image.write_bytes(image_with())
    predicted.write_text(command("measure", image, "--json").out)
    quote.write_bytes(quote_with(LOG, measure_image(image_with()).mrtd))
    done = command("diff", predicted, quote, "--json")
    assert (done.status, json.loads(done.out)["compared"]) == (0, ["MRTD"])
