// The task type my/count in C++: how often a byte occurs, as an unsigned 64-bit little-endian number.
//
//     g++ -O2 -shared -fPIC -I"$(python -m loom.plugins --include)" counter.cpp -o libcounter.so

#include <loom/plugin.h>

#include <algorithm>

static const loom_object *count(loom_task *task)
{
    // Verify inputs and configuration
    if (task->n_inputs != 1 || task->config_size != 1) {
        return loom_fail(task, "Invalid use of the task");
    }
    const loom_object &input = task->inputs[0];
    if (!input.data) {
        return loom_fail(task, "Input object does not contain raw data");
    }

    // Perform the computation, where the bytes lie
    uint64_t n = std::count(input.data, input.data + input.size, task->config[0]);

    // Create the result
    unsigned char result[8];
    for (int i = 0; i < 8; i++) {
        result[i] = static_cast<unsigned char>(n >> (8 * i));
    }
    return loom_bytes(task, result, sizeof result);
}

static const loom_task_type types[] = {{"my/count", count}};
static const loom_plugin plugin = {LOOM_ABI_VERSION, 1, types};

LOOM_EXPORT const loom_plugin *loom_plugin_entry(void)
{
    return &plugin;
}
