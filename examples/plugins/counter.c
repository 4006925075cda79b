/* The task type my/count in C: how often a byte occurs, as an unsigned 64-bit little-endian number.
 *
 *     cc -O2 -shared -fPIC -I"$(python -m loom.plugins --include)" counter.c -o libcounter.so
 */
#include <loom/plugin.h>

static const loom_object *count(loom_task *task)
{
    const loom_object *input = task->inputs;
    unsigned char result[8];
    uint64_t i, n = 0;

    /* Verify inputs and configuration */
    if (task->n_inputs != 1 || task->config_size != 1)
        return loom_fail(task, "Invalid use of the task");
    if (!input->data)
        return loom_fail(task, "Input object does not contain raw data");

    /* Perform the computation, where the bytes lie */
    for (i = 0; i < input->size; i++)
        n += input->data[i] == task->config[0];

    /* Create the result */
    for (i = 0; i < 8; i++)
        result[i] = (unsigned char)(n >> (8 * i));
    return loom_bytes(task, result, sizeof result);
}

static const loom_task_type types[] = {{"my/count", count}};
static const loom_plugin plugin = {LOOM_ABI_VERSION, 1, types};

LOOM_EXPORT const loom_plugin *loom_plugin_entry(void)
{
    return &plugin;
}
