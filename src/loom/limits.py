"""Every bound of the system, in one place. Sizes in bytes, times in seconds."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Wire
MAX_FRAME_BYTES: Final = 64 * MIB  # one control frame; bulk data travels in pieces of its own
LAST_PORT: Final = 65_535
MAX_HANDSHAKE_BYTES: Final = 4 * KIB  # read from a stranger before it has proven the key
HANDSHAKE_TIMEOUT_S: Final = 10.0
MAX_HALF_OPEN_LINKS: Final = 128  # at the bound the oldest is cut, a newcomer is never refused
LINK_HIGH_WATER_BYTES: Final = 4 * MIB  # above it the core stops feeding a link
LINK_LOW_WATER_BYTES: Final = 1 * MIB
LINK_MAX_WAITING_BYTES: Final = 1024 * MIB  # a peer that lets so much wait at the server has its link cut
RELAY_PIECE_BYTES: Final = 1 * MIB
RELAY_PIECES: Final = 8  # what a worker sends of an object through the server before it is told to go on
RELAYS_AT_ONCE: Final = 4  # objects on their way to one client or worker; it waits for others
BULK_PIECE_BYTES: Final = 256 * KIB  # a payload travels in frames of this size; the last one may be smaller
LINK_FLUSH_TIMEOUT_S: Final = 10.0  # a closed link whose peer does not take the rest is cut after this
FETCH_IDLE_TIMEOUT_S: Final = 30.0  # a fetch without a byte for so long is over
LINK_SILENCE_S: Final = 30.0  # a peer that has said nothing for so long is dead; it says something every quarter of it
CLIENT_SILENCE_S: Final = 300.0  # the same for clients as the server sees them: people stop scripts with Ctrl-Z

# Plans
MAX_CHUNK_TASKS: Final = 2048  # 2,048 tasks cost the server some 5 ms of ingest: a bounded turn
CHUNK_TARGET_BYTES: Final = 1 * MIB  # a chunk is closed once it is this large
MAX_CHUNK_BYTES: Final = 48 * MIB  # one task with a large config may exceed the target, never this
MAX_LABEL_CHARS: Final = 200
MAX_SYMBOL_CHARS: Final = 200
MAX_NAME_CHARS: Final = 200  # of a session or a result
MAX_NAMED_RESULTS: Final = 1 << 16  # in one session: whoever takes it up is told of all in one message
MAX_INPUTS: Final = 1 << 22  # of one task
MAX_CONFIG_BYTES: Final = 32 * MIB
MAX_PATH_BYTES: Final = 4096
MAX_ERROR_CHARS: Final = 128 * KIB
STDERR_TAIL_BYTES: Final = 64 * KIB
MAX_CPUS: Final = 1 << 16
MAX_EXTRAS: Final = 32  # named amounts in one resource request
MAX_EXTRA: Final = 1 << 60  # of one of them: bytes, parts of gpus
MAX_RETRIES: Final = 1_000
MAX_PRIORITY: Final = 1 << 31
MAX_TIME_LIMIT_MS: Final = 1 << 40  # some 35 years
MAX_DURATION_US: Final = 1 << 44  # of one task, some 200 days: what a worker says it took counts for no more
MAX_COPIES: Final = 1_000_000  # tasks that one dynamic task or consumer of such becomes
MAX_MADE_TASKS: Final = 4 * MAX_COPIES  # that the server has made and still knows, in one session: some 2 GiB

# Objects
SMALL_OBJECT_BYTES: Final = 64 * KIB  # up to here an object is bytes in its worker; above, a file
INLINE_RESULT_BYTES: Final = 8 * KIB  # up to here a result travels inside ResultsReady
CLIENT_CREDIT_BYTES: Final = 16 * MIB  # inline results a client is ready to keep before it releases some
INLINE_TASK_BYTES: Final = 1 * MIB  # built-ins above this run in an executor, not in the worker's loop
MAX_HANDOVER_FDS: Final = 200  # the kernel takes 253 descriptors a message (SCM_MAX_FD)
MAX_OPEN_MAPPINGS: Final = 256
KEPT_FUNCTIONS: Final = 256  # pickled and live ones, of one executor; loading one again takes some 10 us
KEPT_FUNCTIONS_BYTES: Final = 64 * MIB  # of the pickled ones; some keep large data in their closure
LIGHT_PROGRAMS: Final = 64  # without a request, at a time at one worker, beside the cores that are counted
RECENT_RESULTS: Final = 512  # of one executor, for tasks that follow: more than are queued there at a time
RECENT_RESULT_BYTES: Final = 16 * KIB  # of each; a larger one is sent back to it

# Server
MAX_SESSIONS: Final = 10_000
MAX_RETIRED: Final = 10_000  # workers that are told to go by one message
MAX_QUESTION_BYTES: Final = 1 << 20  # about allocation queues, and the state of all of them in the journal
MAX_TOKEN_BYTES: Final = 64  # a session's secret
MAX_PEER_CHARS: Final = 300  # the name of a worker or client, the address of a worker: a host's name and more
MAX_CREDIT_BYTES: Final = 1024 * MIB  # of inline results that a client may say it is ready to keep
MAX_KINDS: Final = 4096  # distinct (symbol, label prefix, request) the server keeps statistics of
CRASH_LIMIT: Final = 3  # a task that was running on so many workers when they died is not tried again
LINEAGE_BYTES: Final = 4096 * MIB  # of the specs of finished tasks that the server keeps, to make lost objects again
SESSION_GRACE_S: Final = 5.0  # how long a session without a name outlives its broken link
RESTART_GRACE_S: Final = 30.0  # the same after the server has started again: clients may be slow to find it
REATTACH_S: Final = 10.0  # how long a server that has started again waits for the workers that it had
PATIENCE_S: Final = 3600  # how long workers and clients wait for a server with a journal to come back
INVENTORY_ITEMS: Final = 65_536  # in one message
MAX_INVENTORY: Final = 1 << 24  # objects that one worker may bring with it when it comes back
DRAIN_TIMEOUT_S: Final = 30.0  # how long what runs at a worker may go on when the worker is to go
MAX_LOCATIONS: Final = 4  # holders named to a worker for one input

# Journal
JOURNAL_COMPACT_BYTES: Final = 64 * MIB  # below this it is not worth writing anew
JOURNAL_COMPACT_GROWTH: Final = 4  # it is written anew when it is so many times as large as it was then
MAX_RECORD_BYTES: Final = 1 << 31  # of one commit

# Client
CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 5.0  # how long the server may take to acknowledge the end of a session
RECONNECT_PAUSE_S: Final = 0.1
RECONNECT_PAUSE_MAX_S: Final = 2.0
