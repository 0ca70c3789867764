/* The CPython face of the kernels: parse, check every length, drop the GIL, call, wrap.
 *
 * No algorithm is here and no PyObject is below. Buffers stay exported until the call has ended, so nobody
 * can resize them while the GIL is free. The keyword API with its documentation is in __init__.py.  */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

#include <errno.h>
#include <stdlib.h>

/* Below this a call ends before another thread would have started (hashlib's HASHLIB_GIL_MINSIZE).  */
enum { GIL_RELEASE_BYTES_MIN = 2048 };

/* The length in bits must fit 64 bits (FIPS 180-4, section 1).  */
static const long long SHA256_BYTES_END = 1LL << 61;

#define CALL_WITHOUT_GIL(size, call)                       \
    do {                                                   \
        if ((size_t)(size) >= GIL_RELEASE_BYTES_MIN) {     \
            PyThreadState *saved_ = PyEval_SaveThread();   \
            call;                                          \
            PyEval_RestoreThread(saved_);                  \
        } else {                                           \
            call;                                          \
        }                                                  \
    } while (0)

static const char *const STAGE_NAMES[STAGES] = {"cdc", "sha256", "blake3"};

/* An error for a kernel that was not found.  */
static int check_found(kernel_status found, stage which, const char *name)
{
    const char *message = NULL;
    switch (found) {
    case KERNEL_OK:
        return 0;
    case KERNEL_UNKNOWN:
        message = "unknown %s kernel: '%s'";
        break;
    case KERNEL_NOT_COMPILED:
        message = "%s kernel not compiled in: '%s'";
        break;
    case KERNEL_CPU_CANNOT:
        message = "this CPU cannot run %s kernel: '%s'";
        break;
    case KERNEL_WRONG:
        message = "this CPU has wrong results from %s kernel: '%s'";
        break;
    }
    PyErr_Format(PyExc_ValueError, message, STAGE_NAMES[which], name);
    return -1;
}

/* The self-measurement takes a millisecond at most once; it may keep the GIL.  */
static int find_kernel(stage which, const char *name, size_t *index)
{
    return check_found(kernel_find(which, name, index), which, name);
}

static int find_chain_kernel(const char *name, size_t *index)
{
    return check_found(kernel_find_chain(name, index), STAGE_SHA256, name);
}

static int find_stage(const char *name, stage *which)
{
    for (int i = 0; i < STAGES; i++) {
        if (strcmp(name, STAGE_NAMES[i]) == 0) {
            *which = (stage)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown stage: '%s'", name);
    return -1;
}

static int need_size(const Py_buffer *buffer, size_t size, const char *what)
{
    if ((size_t)buffer->len == size) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s must be %zu bytes, not %zd", what, size, buffer->len);
    return -1;
}

static slice *allocate_slices(size_t count)
{
    slice *slices = NULL;
    if (count <= PY_SSIZE_T_MAX / sizeof *slices) {
        slices = malloc(count ? count * sizeof *slices : 1);
    }
    if (!slices) {
        PyErr_NoMemory();
    }
    return slices;
}

/* Chunks by their end offsets: little-endian u64, never descending, none beyond the buffer.  */
static slice *slices_from_ends(const Py_buffer *buffer, const Py_buffer *ends, size_t *count)
{
    if (ends->len % 8 != 0 || (ends->itemsize != 1 && ends->itemsize != 8)) {
        PyErr_SetString(PyExc_ValueError, "ends must be uint64 values");
        return NULL;
    }
    *count = (size_t)ends->len / 8;
    slice *slices = allocate_slices(*count);
    uint64_t from = 0;
    for (size_t i = 0; slices && i < *count; i++) {
        uint64_t to = load_le64((const uint8_t *)ends->buf + 8 * i);
        if (to < from || to > (uint64_t)buffer->len) {
            PyErr_Format(PyExc_ValueError, "end %zu is %llu: ends must ascend within the buffer of %zd bytes",
                         i, (unsigned long long)to, buffer->len);
            free(slices);
            return NULL;
        }
        slices[i] = (slice){(const uint8_t *)buffer->buf + from, (size_t)(to - from)};
        from = to;
    }
    return slices;
}

/* Chunks by their lengths, u32 or u64, which must fill the buffer exactly: no byte may go unverified.  */
static slice *slices_from_lengths(const Py_buffer *buffer, const Py_buffer *lengths, size_t count)
{
    size_t width = (size_t)lengths->itemsize;
    if (width == 1) {
        width = (size_t)lengths->len == 4 * count ? 4 : 8;
    }
    if ((width != 4 && width != 8) || (size_t)lengths->len != width * count) {
        PyErr_SetString(PyExc_ValueError, "lengths must be one uint32 or uint64 for each 32-byte id");
        return NULL;
    }
    slice *slices = allocate_slices(count);
    if (!slices) {
        return NULL;
    }
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *place = (const uint8_t *)lengths->buf + width * i;
        uint64_t size = width == 4 ? load_le32(place) : load_le64(place);
        if (size > (uint64_t)buffer->len - at) {
            PyErr_Format(PyExc_ValueError, "length %zu is %llu: beyond the buffer of %zd bytes", i,
                         (unsigned long long)size, buffer->len);
            free(slices);
            return NULL;
        }
        slices[i] = (slice){(const uint8_t *)buffer->buf + at, (size_t)size};
        at += (size_t)size;
    }
    if (at != (size_t)buffer->len) {
        PyErr_Format(PyExc_ValueError, "lengths sum to %zu, not to the buffer's %zd bytes", at, buffer->len);
        free(slices);
        return NULL;
    }
    return slices;
}

static PyObject *new_digests(size_t count)
{
    if (count > PY_SSIZE_T_MAX / 32) {
        return PyErr_NoMemory();
    }
    return PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * 32));
}

static uint8_t *bytes_of(PyObject *bytes)
{
    return (uint8_t *)PyBytes_AS_STRING(bytes);
}

static PyObject *list_of_failed(const uint8_t *failed, size_t count)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < count; i++) {
        if (failed[i]) {
            PyObject *index = PyLong_FromSize_t(i);
            if (!index || PyList_Append(list, index) < 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(index);
        }
    }
    return list;
}

static PyObject *cdc_call(const Py_buffer *buffer, const Py_ssize_t sizes[3], int normalization,
                          bool is_final, unsigned threads, const char *name)
{
    PyObject *result = NULL;
    cdc_ends ends = {0};
    cdc_params params;
    size_t index;
    int error = 0;
    slice region = {buffer->buf, (size_t)buffer->len};
    /* A negative size becomes a huge one, which the limits refuse like any other.  */
    const char *wrong = cdc_params_init(&params, (size_t)sizes[0], (size_t)sizes[1], (size_t)sizes[2],
                                        (unsigned)normalization);
    if (wrong) {
        PyErr_Format(PyExc_ValueError, "%s: min=%zd avg=%zd max=%zd normalization=%d", wrong, sizes[0],
                     sizes[1], sizes[2], normalization);
        goto exit;
    }
    if (find_kernel(STAGE_CDC, name, &index) < 0) {
        goto exit;
    }
    if (threads > 1) {
        CALL_WITHOUT_GIL(region.size,
                         error = cdc_scan_threads(&CDC_KERNELS[index], &params, region, threads, &ends));
    } else {
        CALL_WITHOUT_GIL(region.size,
                         error = cdc_scan(&CDC_KERNELS[index], &params, region, is_final, &ends));
    }
    if (error) {
        PyErr_NoMemory();
        goto exit;
    }
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(ends.count * 8));
    for (size_t i = 0; result && i < ends.count; i++) {
        store_le64(bytes_of(result) + 8 * i, ends.ends[i]);
    }
exit:
    free(ends.ends);
    return result;
}

static PyObject *py_scan(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer buffer = {0};
    Py_ssize_t sizes[3];
    int normalization, is_final;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*nnnipz:scan", &buffer, &sizes[0], &sizes[1], &sizes[2],
                          &normalization, &is_final, &name)) {
        return NULL;
    }
    PyObject *result = cdc_call(&buffer, sizes, normalization, is_final, 1, name);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_cut_points(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer buffer = {0};
    Py_ssize_t sizes[3];
    int normalization, threads;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*nnniiz:cut_points", &buffer, &sizes[0], &sizes[1], &sizes[2],
                          &normalization, &threads, &name)) {
        return NULL;
    }
    if (threads < 1 || threads > CDC_THREADS_MAX) {
        PyErr_Format(PyExc_ValueError, "threads must be 1 to %d, not %d", CDC_THREADS_MAX, threads);
    } else {
        result = cdc_call(&buffer, sizes, normalization, true, (unsigned)threads, name);
    }
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_blake3_many(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer buffer = {0}, ends = {0};
    slice *slices = NULL;
    size_t index, count;
    int error = 0;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*y*z:blake3_many", &buffer, &ends, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_BLAKE3, name, &index) < 0) {
        goto exit;
    }
    slices = slices_from_ends(&buffer, &ends, &count);
    if (!slices) {
        goto exit;
    }
    result = new_digests(count);
    if (!result) {
        goto exit;
    }
    CALL_WITHOUT_GIL(buffer.len,
                     error = blake3_slices(&BLAKE3_KERNELS[index], slices, count, bytes_of(result)));
    if (error) {
        PyErr_NoMemory();
        Py_CLEAR(result);
    }
exit:
    free(slices);
    PyBuffer_Release(&ends);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_blake3_groups(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer buffer = {0};
    long long offset;
    size_t index;
    int error = 0;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*Lz:blake3_groups", &buffer, &offset, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_BLAKE3, name, &index) < 0) {
        goto exit;
    }
    if (offset < 0 || offset % BLAKE3_GROUP != 0) {
        PyErr_Format(PyExc_ValueError, "no group starts at %lld", offset);
        goto exit;
    }
    result = new_digests(((size_t)buffer.len + BLAKE3_GROUP - 1) / BLAKE3_GROUP);
    if (!result) {
        goto exit;
    }
    slice bytes = {buffer.buf, (size_t)buffer.len};
    CALL_WITHOUT_GIL(buffer.len, error = blake3_groups(&BLAKE3_KERNELS[index], bytes,
                                                       (uint64_t)offset / BLAKE3_LEAF, bytes_of(result)));
    if (error) {
        PyErr_NoMemory();
        Py_CLEAR(result);
    }
exit:
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_blake3_join(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer groups = {0};
    size_t index, count;
    int error = 0;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*z:blake3_join", &groups, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_BLAKE3, name, &index) < 0) {
        goto exit;
    }
    count = (size_t)groups.len / BLAKE3_CV;
    if (groups.len % BLAKE3_CV != 0 || count < 2 || count > BLAKE3_GROUPS_MAX) {
        PyErr_Format(PyExc_ValueError, "groups must be 2 to %d values of 32 bytes, not %zd bytes",
                     BLAKE3_GROUPS_MAX, groups.len);
        goto exit;
    }
    result = new_digests(1);
    if (!result) {
        goto exit;
    }
    CALL_WITHOUT_GIL(groups.len,
                     error = blake3_join(&BLAKE3_KERNELS[index], groups.buf, count, bytes_of(result)));
    if (error) {
        PyErr_NoMemory();
        Py_CLEAR(result);
    }
exit:
    PyBuffer_Release(&groups);
    return result;
}

static PyObject *py_sha256_many(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer buffer = {0}, ends = {0};
    slice *slices = NULL;
    size_t index, count;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*y*z:sha256_many", &buffer, &ends, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_SHA256, name, &index) < 0) {
        goto exit;
    }
    slices = slices_from_ends(&buffer, &ends, &count);
    if (!slices) {
        goto exit;
    }
    result = new_digests(count);
    if (result) {
        CALL_WITHOUT_GIL(buffer.len, sha256_slices(&SHA256_KERNELS[index], slices, count, bytes_of(result)));
    }
exit:
    free(slices);
    PyBuffer_Release(&ends);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_verify_chunks(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer buffer = {0}, lengths = {0}, ids = {0};
    slice *slices = NULL;
    uint8_t *digests = NULL, *failed = NULL;
    size_t index, count;
    int error = 0;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*y*y*z:verify_chunks", &buffer, &lengths, &ids, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_BLAKE3, name, &index) < 0) {
        goto exit;
    }
    if (ids.len % BLAKE3_CV != 0) {
        PyErr_Format(PyExc_ValueError, "ids must be 32 bytes each, not %zd in all", ids.len);
        goto exit;
    }
    count = (size_t)ids.len / BLAKE3_CV;
    slices = slices_from_lengths(&buffer, &lengths, count);
    if (!slices) {
        goto exit;
    }
    digests = malloc((size_t)ids.len + 1);
    failed = calloc(count + 1, 1);
    if (!digests || !failed) {
        PyErr_NoMemory();
        goto exit;
    }
    CALL_WITHOUT_GIL(buffer.len, error = blake3_slices(&BLAKE3_KERNELS[index], slices, count, digests));
    if (error) {
        PyErr_NoMemory();
        goto exit;
    }
    for (size_t i = 0; i < count; i++) {
        failed[i] = memcmp(digests + i * BLAKE3_CV, (const uint8_t *)ids.buf + i * BLAKE3_CV, BLAKE3_CV) != 0;
    }
    result = list_of_failed(failed, count);
exit:
    free(failed);
    free(digests);
    free(slices);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *py_verify_links(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer buffer = {0}, before = {0}, after = {0};
    uint8_t *failed = NULL;
    size_t index, count;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*y*y*z:verify_links", &buffer, &before, &after, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_SHA256, name, &index) < 0) {
        goto exit;
    }
    if (buffer.len % SHA256_SEGMENT != 0) {
        PyErr_Format(PyExc_ValueError, "buffer must be whole segments of %d bytes, not %zd", SHA256_SEGMENT,
                     buffer.len);
        goto exit;
    }
    count = (size_t)buffer.len / SHA256_SEGMENT;
    if (need_size(&before, count * SHA256_DIGEST, "states before") < 0 ||
        need_size(&after, count * SHA256_DIGEST, "states after") < 0) {
        goto exit;
    }
    failed = calloc(count + 1, 1);
    if (!failed) {
        PyErr_NoMemory();
        goto exit;
    }
    CALL_WITHOUT_GIL(buffer.len,
                     sha256_segments(&SHA256_KERNELS[index], buffer.buf, count, before.buf, after.buf, failed));
    result = list_of_failed(failed, count);
exit:
    free(failed);
    PyBuffer_Release(&after);
    PyBuffer_Release(&before);
    PyBuffer_Release(&buffer);
    return result;
}

/* Offsets of segments: little-endian u64, each a multiple of the segment inside the file.  */
static int check_offsets(const Py_buffer *offsets, uint64_t size)
{
    if (offsets->len % 8 != 0 || (offsets->itemsize != 1 && offsets->itemsize != 8)) {
        PyErr_SetString(PyExc_ValueError, "offsets must be uint64 values");
        return -1;
    }
    for (size_t i = 0; i < (size_t)offsets->len / 8; i++) {
        uint64_t offset = load_le64((const uint8_t *)offsets->buf + 8 * i);
        if (offset % SHA256_SEGMENT != 0 || (offset && offset >= size)) {
            PyErr_Format(PyExc_ValueError, "offset %zu is %llu: no segment of a file of %llu bytes starts there",
                         i, (unsigned long long)offset, (unsigned long long)size);
            return -1;
        }
    }
    return 0;
}

static PyObject *py_verify_file_links(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer offsets = {0}, before = {0}, after = {0};
    uint8_t *failed = NULL;
    size_t index, count;
    int fd, error;
    long long size;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "iLy*y*y*z:verify_file_links", &fd, &size, &offsets, &before, &after,
                          &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_SHA256, name, &index) < 0) {
        goto exit;
    }
    if (size < 0 || size >= SHA256_BYTES_END) {
        PyErr_Format(PyExc_ValueError, "no file has %lld bytes", size);
        goto exit;
    }
    count = (size_t)offsets.len / 8;
    if (check_offsets(&offsets, (uint64_t)size) < 0 ||
        need_size(&before, count * SHA256_DIGEST, "states before") < 0 ||
        need_size(&after, count * SHA256_DIGEST, "states after") < 0) {
        goto exit;
    }
    failed = calloc(count + 1, 1);
    if (!failed) {
        PyErr_NoMemory();
        goto exit;
    }
    PyThreadState *saved = PyEval_SaveThread();
    error = sha256_file_segments(&SHA256_KERNELS[index], fd, (uint64_t)size, offsets.buf, count, before.buf,
                                 after.buf, failed);
    PyEval_RestoreThread(saved);
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        goto exit;
    }
    result = list_of_failed(failed, count);
exit:
    free(failed);
    PyBuffer_Release(&after);
    PyBuffer_Release(&before);
    PyBuffer_Release(&offsets);
    return result;
}

static PyObject *py_sha256_finish(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL;
    Py_buffer state = {0}, tail = {0};
    long long total;
    size_t index;
    uint32_t words[8];
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*y*Lz:sha256_finish", &state, &tail, &total, &name)) {
        return NULL;
    }
    if (find_kernel(STAGE_SHA256, name, &index) < 0 || need_size(&state, SHA256_DIGEST, "state") < 0) {
        goto exit;
    }
    if (total >= SHA256_BYTES_END || tail.len > total || (total - tail.len) % SHA256_BLOCK != 0) {
        PyErr_Format(PyExc_ValueError, "a tail of %zd bytes cannot end %lld bytes", tail.len, total);
        goto exit;
    }
    result = new_digests(1);
    if (result) {
        slice rest = {tail.buf, (size_t)tail.len};
        sha256_load(words, state.buf);
        CALL_WITHOUT_GIL(tail.len, sha256_finish(&SHA256_KERNELS[index], words, rest, (uint64_t)total,
                                                 bytes_of(result)));
    }
exit:
    PyBuffer_Release(&tail);
    PyBuffer_Release(&state);
    return result;
}

static PyObject *py_chain_update(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *result = NULL, *digests = NULL, *states = NULL;
    Py_buffer state = {0}, carry = {0}, buffer = {0}, ends = {0};
    slice *slices = NULL;
    sha256_chain chain = {0};
    long long total;
    size_t index, count;
    uint8_t reached[SHA256_DIGEST];
    const char *name;
    if (!PyArg_ParseTuple(arguments, "y*y*Ly*y*z:chain_update", &state, &carry, &total, &buffer, &ends,
                          &name)) {
        return NULL;
    }
    if (find_chain_kernel(name, &index) < 0 || need_size(&state, SHA256_DIGEST, "state") < 0) {
        goto exit;
    }
    if (total < 0 || total >= SHA256_BYTES_END || buffer.len >= SHA256_BYTES_END - total) {
        PyErr_SetString(PyExc_ValueError, "SHA-256 ends before 2**61 bytes");
        goto exit;
    }
    chain.total = (uint64_t)total;
    if (need_size(&carry, chain.total % SHA256_BLOCK, "carry") < 0) {
        goto exit;
    }
    slices = slices_from_ends(&buffer, &ends, &count);
    if (!slices) {
        goto exit;
    }
    digests = new_digests(count);
    states = new_digests(sha256_chain_states_count(chain.total, (size_t)buffer.len));
    if (!digests || !states) {
        goto exit;
    }
    sha256_load(chain.state, state.buf);
    memcpy(chain.carry, carry.buf, (size_t)carry.len);
    slice all = {buffer.buf, (size_t)buffer.len};
    CALL_WITHOUT_GIL(buffer.len, sha256_chain_update(&SHA256_KERNELS[index], &chain, all, slices, count,
                                                     bytes_of(digests), bytes_of(states)));
    sha256_store(reached, chain.state);
    result = Py_BuildValue("y#y#OO", (char *)reached, (Py_ssize_t)sizeof reached, (char *)chain.carry,
                           (Py_ssize_t)(chain.total % SHA256_BLOCK), digests, states);
exit:
    Py_XDECREF(states);
    Py_XDECREF(digests);
    free(slices);
    PyBuffer_Release(&ends);
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&carry);
    PyBuffer_Release(&state);
    return result;
}

static PyObject *py_kernel_states(PyObject *module, PyObject *arguments)
{
    (void)module;
    static const char *const WORDS[] = {
        [KERNEL_OK] = "ok", [KERNEL_NOT_COMPILED] = "not compiled in", [KERNEL_CPU_CANNOT] = "cpu cannot",
        [KERNEL_WRONG] = "wrong results"};
    const char *name;
    stage which;
    if (!PyArg_ParseTuple(arguments, "s:kernel_states", &name) || find_stage(name, &which) < 0) {
        return NULL;
    }
    PyObject *table = PyDict_New();
    for (size_t i = 0; table && i < KERNEL_COUNT[which]; i++) {
        PyObject *word = PyUnicode_FromString(WORDS[kernel_state(which, i)]);
        if (!word || PyDict_SetItemString(table, kernel_name(which, i), word) < 0) {
            Py_CLEAR(table);
        }
        Py_XDECREF(word);
    }
    return table;
}

static PyObject *py_default_kernel(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *name;
    stage which;
    size_t index;
    if (!PyArg_ParseTuple(arguments, "s:default_kernel", &name) || find_stage(name, &which) < 0 ||
        find_kernel(which, NULL, &index) < 0) {
        return NULL;
    }
    return PyUnicode_FromString(kernel_name(which, index));
}

static PyObject *py_chunk_share(PyObject *module, PyObject *arguments)
{
    (void)module;
    const char *name;
    size_t index;
    if (!PyArg_ParseTuple(arguments, "z:chunk_share", &name) || find_chain_kernel(name, &index) < 0) {
        return NULL;
    }
    return PyFloat_FromDouble(SHA256_KERNELS[index].chunk_share);
}

static PyMethodDef METHODS[] = {
    {"scan", py_scan, METH_VARARGS, NULL},
    {"cut_points", py_cut_points, METH_VARARGS, NULL},
    {"blake3_many", py_blake3_many, METH_VARARGS, NULL},
    {"blake3_groups", py_blake3_groups, METH_VARARGS, NULL},
    {"blake3_join", py_blake3_join, METH_VARARGS, NULL},
    {"sha256_many", py_sha256_many, METH_VARARGS, NULL},
    {"verify_chunks", py_verify_chunks, METH_VARARGS, NULL},
    {"verify_links", py_verify_links, METH_VARARGS, NULL},
    {"verify_file_links", py_verify_file_links, METH_VARARGS, NULL},
    {"sha256_finish", py_sha256_finish, METH_VARARGS, NULL},
    {"chain_update", py_chain_update, METH_VARARGS, NULL},
    {"chunk_share", py_chunk_share, METH_VARARGS, NULL},
    {"kernel_states", py_kernel_states, METH_VARARGS, NULL},
    {"default_kernel", py_default_kernel, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "megalfs_ext._kernels",
    .m_doc = "Compiled kernels behind megalfs_ext, which has the documentation.",
    .m_size = 0,
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&MODULE);
}
