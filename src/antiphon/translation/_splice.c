/* Cuts the texts out of a run of similar chunks and makes an event of each text, in C.

   Lives here: `splice`, which does the same as `splice_in_python` in splice.py. The docstrings of splice.py describe
   the arguments, and say when Antiphon uses which version. Not here: the code that learns what chunks have in common
   (answer/alike.py), and the work that Antiphon does once per read.

   Invariants: `splice` measures all output before it writes any of it, and never reads past the end of an argument. It
   raises an exception if an argument has another type, or if memory runs out. It has no state and no callbacks, and
   keeps no borrowed reference after the call. It uses only the limited C API, so that one binary serves every CPython
   from 3.11 on. */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <string.h>

typedef struct {
    const unsigned char *at;
    Py_ssize_t size;
} Bytes;

enum { DATA, BEFORE, BEHIND, HEAD, MIDDLE, TAIL, BYTES_ARGUMENTS };
enum { NUMBER = BYTES_ARGUMENTS, REFUSED, ARGUMENTS };

/* `splice` notes up to this number of texts on the stack, without allocating memory. */
#define FEW 64
/* Sequence numbers stay below this limit, so that adding to a number never overflows. */
#define LAST_NUMBER 1000000000000000000LL
#define MOST_DIGITS 19

static int
is_hexadecimal(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* The size in bytes of the escape sequence at `at`. 0 if JSON has no such escape, if the escape is incomplete, or if it
   encodes half of a surrogate pair. A lone half has no UTF-8 form, so the caller decodes such a chunk fully. */
static Py_ssize_t
escape_size(const unsigned char *at, const unsigned char *end)
{
    if (end - at < 2)
        return 0;
    switch (at[1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
        return 2;
    case 'u':
        if (end - at < 6)
            return 0;
        for (int place = 2; place < 6; place++)
            if (!is_hexadecimal(at[place]))
                return 0;
        return (at[2] | 0x20) == 'd' && at[3] > '7' ? 0 : 6;
    default:
        return 0;
    }
}

static int
continues(unsigned char c)
{
    return (c & 0xC0) == 0x80;
}

/* The size in bytes of the character at `at`, which is not an ASCII character. 0 if the bytes are not valid UTF-8: cut
   off, longer than necessary, a surrogate, or beyond U+10FFFF. */
static Py_ssize_t
character_size(const unsigned char *at, const unsigned char *end)
{
    Py_ssize_t left = end - at;
    unsigned char first = at[0];
    if (first < 0xC2)
        return 0;
    if (first < 0xE0)
        return left >= 2 && continues(at[1]) ? 2 : 0;
    if (first < 0xF0) {
        if (left < 3 || !continues(at[1]) || !continues(at[2]))
            return 0;
        return (first == 0xE0 && at[1] < 0xA0) || (first == 0xED && at[1] > 0x9F) ? 0 : 3;
    }
    if (first < 0xF5) {
        if (left < 4 || !continues(at[1]) || !continues(at[2]) || !continues(at[3]))
            return 0;
        return (first == 0xF0 && at[1] < 0x90) || (first == 0xF4 && at[1] > 0x8F) ? 0 : 4;
    }
    return 0;
}

/* A pointer to the quote that ends the JSON string whose content begins at `at`. NULL if there is no such quote, or if
   the content is not valid. */
static const unsigned char *
end_of_text(const unsigned char *at, const unsigned char *end)
{
    while (at < end) {
        unsigned char c = *at;
        Py_ssize_t size = 1;
        if (c == '"')
            return at;
        if (c < 0x20)
            return NULL;
        if (c == '\\')
            size = escape_size(at, end);
        else if (c >= 0x80)
            size = character_size(at, end);
        if (size == 0)
            return NULL;
        at += size;
    }
    return NULL;
}

static int
begins_with(const unsigned char *at, const unsigned char *end, Bytes what)
{
    return end - at >= what.size && memcmp(at, what.at, (size_t)what.size) == 0;
}

static unsigned char *
put(unsigned char *to, Bytes what)
{
    memcpy(to, what.at, (size_t)what.size);
    return to + what.size;
}

static unsigned char *
put_number(unsigned char *to, long long number)
{
    unsigned char digits[MOST_DIGITS];
    int size = 0;
    do {
        digits[size++] = (unsigned char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (size)
        *to++ = digits[--size];
    return to;
}

static PyObject *
result(PyObject *events, PyObject *text, Py_ssize_t count, Py_ssize_t used)
{
    PyObject *values[4] = {events, text, PyLong_FromSsize_t(count), PyLong_FromSsize_t(used)};
    PyObject *all = PyTuple_New(4);
    for (int place = 0; place < 4; place++) {
        if (all == NULL || values[place] == NULL) {
            Py_CLEAR(all);
            Py_XDECREF(values[place]);
        }
        else
            PyTuple_SetItem(all, place, values[place]); /* takes the reference, and cannot fail here */
    }
    return all;
}

/* Returns the events for these texts, and the concatenated texts. `size` is the size of all texts in bytes, and
   `digits` is the number of digits in all sequence numbers. */
static PyObject *
written(const Bytes *given, const Bytes *texts, Py_ssize_t count, Py_ssize_t size, Py_ssize_t digits, long long number,
        Py_ssize_t used)
{
    Py_ssize_t each = given[HEAD].size + given[MIDDLE].size + given[TAIL].size;
    if (each > (PY_SSIZE_T_MAX - size - digits) / count)
        return PyErr_NoMemory();
    PyObject *text = PyBytes_FromStringAndSize(NULL, size);
    PyObject *events = PyBytes_FromStringAndSize(NULL, count * each + size + digits);
    if (text == NULL || events == NULL) {
        Py_XDECREF(text);
        Py_XDECREF(events);
        return NULL;
    }
    unsigned char *to = (unsigned char *)PyBytes_AsString(events);
    unsigned char *joined = (unsigned char *)PyBytes_AsString(text);
    for (Py_ssize_t place = 0; place < count; place++) {
        to = put(to, given[HEAD]);
        to = put_number(to, number + place);
        to = put(to, given[MIDDLE]);
        to = put(to, texts[place]);
        to = put(to, given[TAIL]);
        joined = put(joined, texts[place]);
    }
    return result(events, text, count, used);
}

static PyObject *
splice(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t argument_count)
{
    if (argument_count != ARGUMENTS) {
        PyErr_Format(PyExc_TypeError, "splice takes %d arguments", ARGUMENTS);
        return NULL;
    }
    Bytes given[BYTES_ARGUMENTS], refused;
    char *start;
    for (int place = 0; place < BYTES_ARGUMENTS; place++) {
        if (PyBytes_AsStringAndSize(arguments[place], &start, &given[place].size) < 0)
            return NULL;
        given[place].at = (const unsigned char *)start;
    }
    if (PyBytes_AsStringAndSize(arguments[REFUSED], &start, &refused.size) < 0)
        return NULL;
    refused.at = (const unsigned char *)start;
    long long number = PyLong_AsLongLong(arguments[NUMBER]);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    Bytes data = given[DATA], before = given[BEFORE], behind = given[BEHIND];
    if (number < 0 || number > LAST_NUMBER - data.size || behind.size < 1 || behind.at[0] != '"') {
        PyErr_SetString(PyExc_ValueError, "splice needs a number, and a quote behind the text");
        return NULL;
    }

    /* Each chunk has at least the bytes around its text. */
    Py_ssize_t most = data.size / (before.size + behind.size);
    Bytes few[FEW], *texts = few;
    if (most > FEW) {
        if ((size_t)most > (size_t)PY_SSIZE_T_MAX / sizeof(Bytes))
            return PyErr_NoMemory();
        texts = PyMem_Malloc((size_t)most * sizeof(Bytes));
        if (texts == NULL)
            return PyErr_NoMemory();
    }
    const unsigned char *at = data.at, *end = data.at + data.size;
    Py_ssize_t count = 0, size = 0, all_digits = 0, digits = 1;
    long long longer = 10; /* the first number that has more digits */
    while (begins_with(at, end, before)) {
        const unsigned char *text = at + before.size, *stop = end_of_text(text, end);
        if (stop == NULL || !begins_with(stop, end, behind))
            break;
        if (stop > text) {
            Bytes one = {text, stop - text};
            if (refused.size && begins_with(text, stop, refused))
                break;
            texts[count++] = one;
            size += one.size;
            for (; number + count > longer; longer *= 10)
                digits++;
            all_digits += digits;
        }
        at = stop + behind.size;
    }
    PyObject *made;
    if (count)
        made = written(given, texts, count, size, all_digits, number, at - data.at);
    else
        made = result(PyBytes_FromStringAndSize(NULL, 0), PyBytes_FromStringAndSize(NULL, 0), 0, at - data.at);
    if (texts != few)
        PyMem_Free(texts);
    return made;
}

static PyMethodDef methods[] = {
    {"splice", (PyCFunction)(void (*)(void))splice, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_splice", NULL, 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__splice(void)
{
    return PyModuleDef_Init(&definition);
}
