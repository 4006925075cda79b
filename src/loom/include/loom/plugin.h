/* The C interface of Loom's native plugins: task types in a shared library. Plain C (C99), usable from C++.
 *
 * A plugin exports one function, which says what it has:
 *
 *     #include <loom/plugin.h>
 *
 *     static const loom_object *hello(loom_task *task)
 *     {
 *         return loom_bytes(task, "hello", 5);
 *     }
 *
 *     static const loom_task_type types[] = {{"my/hello", hello}};
 *     static const loom_plugin plugin = {LOOM_ABI_VERSION, 1, types};
 *
 *     LOOM_EXPORT const loom_plugin *loom_plugin_entry(void) { return &plugin; }
 *
 * It is built by one call of the compiler and loaded by workers:
 *
 *     cc -O2 -shared -fPIC -I"$(python -m loom.plugins --include)" hello.c -o libhello.so
 *     loom-worker --load-native ./libhello.so HOST PORT
 *
 * Clients name the symbol: Task("my/hello"). Tasks run in the worker's executor processes, one at a time in each. A task
 * that crashes its process fails, with what killed it, and no other.
 *
 * Rules
 * - All pointers that Loom gives are valid until the task's run function returns. Its objects are never freed by you.
 * - What you pass to a function is copied before it returns. Contents of inputs must not be written to.
 * - Call these functions from the thread in which the run function was called, and before it returns.
 * - Text is UTF-8 that ends with a NUL. Nothing may be thrown out of a run function: catch C++ exceptions inside.
 */
#ifndef LOOM_PLUGIN_H
#define LOOM_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of everything below. A worker refuses a plugin that was built with another one. */
#define LOOM_ABI_VERSION 1u

#ifdef __cplusplus
#define LOOM_EXPORT extern "C" __attribute__((visibility("default")))
#else
#define LOOM_EXPORT __attribute__((visibility("default")))
#endif

/* A data object: an input, an element of one, or a result in the making. */
typedef struct loom_object {
    const char *symbol;        /* its type: loom/data, loom/file, loom/array, loom/index, loom/pyobj, or an own one */
    const unsigned char *data; /* the content of a D-object, `size` bytes, mapped where it lies; NULL for all others */
    uint64_t size;             /* in bytes; of what is no D-object an approximation */
    uint64_t length;           /* inner pieces: elements of an array, pieces of an index; 0 for D-objects */
} loom_object;

typedef struct loom_task loom_task;

/* What Loom does for a running task. Use the functions loom_... below. */
typedef struct loom_functions {
    const loom_object *(*fail)(loom_task *task, const char *text);
    const loom_object *(*bytes)(loom_task *task, const void *data, uint64_t size);
    const loom_object *(*own)(loom_task *task, const char *symbol, uint64_t length, const void *data, uint64_t size);
    const loom_object *(*array)(loom_task *task, const loom_object *const *items, uint64_t count);
    const loom_object *(*element)(loom_task *task, const loom_object *object, uint64_t index);
    const unsigned char *(*payload)(loom_task *task, const loom_object *object, uint64_t *size);
} loom_functions;

/* A running task. */
struct loom_task {
    const loom_functions *functions;
    const unsigned char *config; /* the task's configuration; never NULL, and a NUL follows it */
    uint64_t config_size;
    const loom_object *inputs;
    uint64_t n_inputs;
};

/* Runs a task: returns its result, which is an input, an element of one, or something made by loom_bytes, loom_own or
 * loom_array; or what loom_fail returns. */
typedef const loom_object *(*loom_run_function)(loom_task *task);

typedef struct loom_task_type {
    const char *symbol; /* with a prefix of your own: my/count; loom/... is refused */
    loom_run_function run;
} loom_task_type;

typedef struct loom_plugin {
    uint32_t abi_version; /* LOOM_ABI_VERSION */
    uint32_t n_task_types;
    const loom_task_type *task_types;
} loom_plugin;

/* The one function that a plugin exports, as LOOM_EXPORT. It is called once in each process that loads the plugin; what
 * it returns has to stay. */
typedef const loom_plugin *(*loom_entry_function)(void);

/* The task fails with this text, whatever its run function returns. Returns NULL, to be returned by it. */
static inline const loom_object *loom_fail(loom_task *task, const char *text)
{
    return task->functions->fail(task, text);
}

/* A plain object with a copy of these bytes. */
static inline const loom_object *loom_bytes(loom_task *task, const void *data, uint64_t size)
{
    return task->functions->bytes(task, data, size);
}

/* An object of an own type with a copy of these bytes as its payload. A Python class that is registered under the symbol
 * (loom.plugins.data_type) gets them in its unpack(). NULL where the symbol cannot be one of an own type. */
static inline const loom_object *loom_own(loom_task *task, const char *symbol, uint64_t length, const void *data,
                                          uint64_t size)
{
    return task->functions->own(task, symbol, length, data, size);
}

/* An array of objects. */
static inline const loom_object *loom_array(loom_task *task, const loom_object *const *items, uint64_t count)
{
    return task->functions->array(task, items, count);
}

/* An element of an array or an index (or of an own type whose Python class has get()). NULL where there is none. */
static inline const loom_object *loom_element(loom_task *task, const loom_object *object, uint64_t index)
{
    return task->functions->element(task, object, index);
}

/* The bytes that an object consists of: those of a D-object, or what an object of an own type was packed to, and how
 * many they are. NULL where it is something else. */
static inline const unsigned char *loom_payload(loom_task *task, const loom_object *object, uint64_t *size)
{
    return task->functions->payload(task, object, size);
}

#ifdef __cplusplus
}
#endif

#endif
