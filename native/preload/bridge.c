/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From C into the emulated kernel: a Python interpreter inside a program that knows nothing of it.
 *
 * The interpreter is started here, isolated from the program's environment, or it is the program's own where the
 * program is Python. The kernel is a list of Python functions (swtdx.exec.inside), one for each enum swtdx_call. They
 * take integers, return an integer and raise nothing.
 *
 * A thread keeps its PyThreadState from its first call to its end: making one for each ioctl would cost more than the
 * ioctl. PyGILState does that by itself as long as one PyGILState_Ensure() is left without its Release.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "gate.h"

static const struct swtdx_program *program;
static PyObject *functions[SWTDX_CALLS];
static bool resident; /* the program is Python: the interpreter is its own, and forks are its own business */
static bool ended;    /* that interpreter was finalized; if the program starts another, the kernel is not in it */
static pthread_key_t thread_end;
static __thread bool known;
static __thread PyGILState_STATE at_fork;

static void delete_state(void *state)
{
    PyEval_RestoreThread(state);
    PyThreadState_Clear(state);
    PyThreadState_DeleteCurrent(); /* unmaps memory, with Python's lock held */
}

/* glibc has cleared all keys by now, PyGILState's too: the thread state comes as the key's value. */
static void forget_thread(void *state)
{
    if (!ended && Py_IsInitialized()) {
        program->from_inside(delete_state, state);
    }
}

static void keep_thread(void)
{
    known = true;
    if (!PyGILState_GetThisThreadState()) { /* else Python made it, and Python ends it */
        PyGILState_Ensure();
        pthread_setspecific(thread_end, PyEval_SaveThread());
    }
}

/* The program's Python is being finalized or is gone, and no code of it may run: the machine is off. */
static long call_when_off(enum swtdx_call number, uint64_t fd)
{
    if (number == SWTDX_CLOSE) {
        return syscall(SYS_close, (int)fd) ? -errno : 0;
    }
    switch (number) {
    case SWTDX_UNMAP:
    case SWTDX_CHANGED:
    case SWTDX_PREPARE:
    case SWTDX_SETTLE:
    case SWTDX_FINISH:
        return 0;
    default:
        return -EIO;
    }
}

static long call(enum swtdx_call number, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    PyObject *arguments[4], *result = NULL;
    PyGILState_STATE state;
    long value = -EIO;
    int i;

    if (resident && (ended || !Py_IsInitialized())) {
        return call_when_off(number, a);
    }
    if (!known) {
        keep_thread();
    }
    state = PyGILState_Ensure();
    arguments[0] = PyLong_FromUnsignedLong(a);
    arguments[1] = PyLong_FromUnsignedLong(b);
    arguments[2] = PyLong_FromUnsignedLong(c);
    arguments[3] = PyLong_FromUnsignedLong(d);
    if (arguments[0] && arguments[1] && arguments[2] && arguments[3]) {
        result = PyObject_Vectorcall(functions[number], arguments, 4, NULL);
    }
    if (result) {
        value = PyLong_AsLong(result);
        Py_DECREF(result);
    }
    if (PyErr_Occurred()) { /* a fault of ours: it must not cross the line as an exception */
        PyErr_WriteUnraisable(functions[number]);
        value = -EIO;
    }
    for (i = 0; i < 4; i++) {
        Py_XDECREF(arguments[i]);
    }
    PyGILState_Release(state);
    return value;
}

/* fork() in a program that is not Python: what os.fork() does around it. */
static void around_fork(enum swtdx_fork when)
{
    if (resident) {
        return;
    }
    if (when == SWTDX_FORK_PREPARE) {
        if (!known) {
            keep_thread();
        }
        at_fork = PyGILState_Ensure();
        PyOS_BeforeFork();
        return;
    }
    if (when == SWTDX_FORK_PARENT) {
        PyOS_AfterFork_Parent();
    } else {
        PyOS_AfterFork_Child();
    }
    PyGILState_Release(at_fork);
}

static const struct swtdx_bridge bridge = { .call = call, .fork = around_fork };

/* ---- starting ---- */

/* The line NAME=VALUE of the settings, without a newline. */
static bool setting(const char *name, char *value, size_t size)
{
    char path[4096], line[4096];
    size_t length = strlen(name);
    bool found = false;
    FILE *file;

    snprintf(path, sizeof(path), "%s/settings", program->settings);
    file = fopen(path, "re");
    if (!file) {
        return false;
    }
    while (!found && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, name, length) && line[length] == '=') {
            found = snprintf(value, size, "%s", line + length + 1) < (int)size;
        }
    }
    fclose(file);
    return found;
}

static bool start_interpreter(void)
{
    char python[4096];
    PyConfig config;
    PyStatus status;

    if (!setting("python", python, sizeof(python))) {
        return false;
    }
    PyConfig_InitIsolatedConfig(&config);
    config.write_bytecode = 0; /* the installation may belong to another user */
    config.install_signal_handlers = 0;
    status = PyConfig_SetBytesString(&config, &config.program_name, python); /* from it follow its paths */
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        dprintf(2, "swtdx: exec: Python does not start: %s\n", status.err_msg ? status.err_msg : "no reason given");
        return false;
    }
    return true;
}

/* In the program's own interpreter swtdx is found where it is installed, after all that the program has. */
static bool extend_path(void)
{
    char paths[4096], *entry, *rest = paths;
    PyObject *path = PySys_GetObject("path"), *text;
    int result = 0;

    if (!path || !setting("path", paths, sizeof(paths))) {
        return false;
    }
    while (!result && (entry = strsep(&rest, ":"))) {
        text = PyUnicode_DecodeFSDefault(entry);
        if (!text) {
            return false;
        }
        if (PySequence_Contains(path, text) == 0) {
            result = PyList_Append(path, text);
        }
        Py_DECREF(text);
    }
    return result == 0;
}

static bool load_kernel(void)
{
    PyObject *module = NULL, *list = NULL, *names = NULL;
    Py_ssize_t i;
    bool done = false;

    if (extend_path()) {
        module = PyImport_ImportModule("swtdx.exec.inside");
    }
    if (module) {
        list = PyObject_CallMethod(module, "start", "s", program->settings);
    }
    if (list) {
        names = PySequence_Tuple(list);
    }
    if (names && PyTuple_GET_SIZE(names) == SWTDX_CALLS) {
        for (i = 0; i < SWTDX_CALLS; i++) {
            functions[i] = Py_NewRef(PyTuple_GET_ITEM(names, i));
        }
        done = true;
    }
    if (PyErr_Occurred()) {
        dprintf(2, "swtdx: exec: the emulated kernel does not start:\n");
        PyErr_Print();
    }
    Py_XDECREF(names);
    Py_XDECREF(list);
    Py_XDECREF(module);
    return done;
}

static void note_end(void)
{
    ended = true;
}

/* The program's Python ends before the process does: what the process's end needs of it happens as it ends. */
static bool finish_with_python(void)
{
    PyObject *module = PyImport_ImportModule("atexit"), *result = NULL;

    if (module) {
        result = PyObject_CallMethod(module, "register", "Oiiii", functions[SWTDX_FINISH], 0, 0, 0, 0);
    }
    if (!result) {
        PyErr_Print();
    }
    Py_XDECREF(result);
    Py_XDECREF(module);
    return result && !Py_AtExit(note_end);
}

__attribute__((visibility("default"))) const struct swtdx_bridge *swtdx_bridge_start(const struct swtdx_program *given)
{
    PyGILState_STATE state;
    bool done;

    program = given;
    pthread_key_create(&thread_end, forget_thread);
    resident = Py_IsInitialized();
    if (!resident) {
        if (!start_interpreter()) {
            return NULL;
        }
        PyEval_SaveThread();
        known = true; /* the main thread state of the interpreter is this thread's for good */
    }
    state = PyGILState_Ensure();
    done = load_kernel() && (!resident || finish_with_python());
    PyGILState_Release(state);
    return done ? &bridge : NULL;
}

/* ---- what the kernel asks ---- */

static PyObject *open_signals(PyObject *self, PyObject *sigset)
{
    uint64_t mask;

    (void)self;
    if (sigset == Py_None) {
        program->open_signals(NULL);
    } else {
        mask = PyLong_AsUnsignedLongLongMask(sigset);
        program->open_signals(&mask);
    }
    Py_RETURN_NONE;
}

static PyObject *close_signals(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    program->close_signals();
    Py_RETURN_NONE;
}

static PyObject *set_interrupt(PyObject *self, PyObject *address)
{
    void *function = PyLong_AsVoidPtr(address);

    (void)self;
    if (PyErr_Occurred()) {
        return NULL;
    }
    program->set_interrupt((void (*)(void))function);
    Py_RETURN_NONE;
}

static PyObject *watch(PyObject *self, PyObject *args)
{
    unsigned long long start, end;

    (void)self;
    if (!PyArg_ParseTuple(args, "KK", &start, &end)) {
        return NULL;
    }
    program->watch(start, end);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    { "open_signals", open_signals, METH_O, "Let signals come, under this mask or (None) the program's." },
    { "close_signals", close_signals, METH_NOARGS, "Block them again." },
    { "set_interrupt", set_interrupt, METH_O, "Address of the function to call when a signal has come." },
    { "watch", watch, METH_VARARGS, "Report changes of mappings between two addresses." },
    { 0 },
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_bridge",
    .m_size = -1,
    .m_methods = methods,
    .m_doc = "What the emulated kernel can ask about the program whose calls it serves.",
};

PyMODINIT_FUNC PyInit__bridge(void)
{
    return PyModule_Create(&module);
}
