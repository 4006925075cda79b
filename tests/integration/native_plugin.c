/* A native plugin for tests: everything that the interface offers, and wrong uses of it. */
#include <loom/plugin.h>

#include <stdlib.h>
#include <string.h>

/* An array: for each input its symbol, its length as one byte, its size as one byte. */
static const loom_object *look(loom_task *task)
{
    const loom_object *parts[3 * 16];
    uint64_t i, n = 0;
    for (i = 0; i < task->n_inputs && i < 16; i++) {
        const loom_object *input = &task->inputs[i];
        unsigned char length = (unsigned char)input->length, size = (unsigned char)input->size;
        parts[n++] = loom_bytes(task, input->symbol, strlen(input->symbol));
        parts[n++] = loom_bytes(task, &length, 1);
        parts[n++] = loom_bytes(task, &size, 1);
    }
    return loom_array(task, parts, n);
}

/* The elements of the input, last one first. */
static const loom_object *reversed(loom_task *task)
{
    const loom_object *input = task->inputs, *result;
    uint64_t i, n = input->length;
    const loom_object **parts = malloc((n + 1) * sizeof *parts);
    for (i = 0; i < n; i++)
        parts[i] = loom_element(task, input, n - 1 - i);
    result = loom_element(task, input, n) ? loom_fail(task, "there is one too many") : loom_array(task, parts, n);
    free(parts);
    return result;
}

/* The input itself. */
static const loom_object *same(loom_task *task)
{
    return task->inputs;
}

/* As many bytes as the configuration says, all of them the last digit. */
static const loom_object *many(loom_task *task)
{
    uint64_t n = strtoull((const char *)task->config, NULL, 10);
    unsigned char *data = malloc(n + 1);
    const loom_object *result;
    memset(data, task->config[task->config_size - 1], n);
    result = loom_bytes(task, data, n);
    free(data);
    return result;
}

/* An object of the own type that the configuration names, of the input's bytes. */
static const loom_object *own(loom_task *task)
{
    char symbol[64] = "";
    uint64_t size;
    const unsigned char *data = loom_payload(task, task->inputs, &size);
    if (!data || task->config_size >= sizeof symbol)
        return loom_fail(task, "nothing to pack");
    memcpy(symbol, task->config, task->config_size);
    return loom_own(task, symbol, 7, data, size);
}

/* The bytes of an own object, as they were packed. */
static const loom_object *payload(loom_task *task)
{
    uint64_t size = 0;
    const unsigned char *data = loom_payload(task, task->inputs, &size);
    return data ? loom_bytes(task, data, size) : loom_fail(task, "no payload");
}

static const loom_object *wrong(loom_task *task)
{
    static loom_object made_up = {"loom/data", 0, 0, 0};
    const loom_object *items[1];
    items[0] = &made_up;
    switch (task->config_size ? task->config[0] : 0) {
    case 'n':
        return NULL;
    case 'p':
        return &made_up;
    case 'a':
        return loom_array(task, items, 1);
    case 'f':
        loom_fail(task, "first");
        return loom_fail(task, "second");
    case 'e':
        return loom_fail(task, "");
    case 'z':
        return loom_bytes(task, NULL, 5);
    case 's':
        return loom_own(task, "loom/mine", 0, "", 0);
    case 'u':
        return loom_fail(task, "no \xff text");
    default:
        abort();
    }
}

static const loom_task_type types[] = {
    {"native/look", look}, {"native/reversed", reversed}, {"native/same", same},   {"native/many", many},
    {"native/own", own},   {"native/payload", payload},   {"native/wrong", wrong},
};
static const loom_plugin plugin = {LOOM_ABI_VERSION, sizeof types / sizeof *types, types};

LOOM_EXPORT const loom_plugin *loom_plugin_entry(void)
{
    return &plugin;
}
