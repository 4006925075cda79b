#!/bin/sh
# program.sh NAME COMMAND...: a line in the ledger, the command, another line.
name=$1
shift
echo "begun $name 0 0 $$" >>"$LOOM_CHAOS_LEDGER"
"$@" || exit
echo "ended $name 0 0 $$" >>"$LOOM_CHAOS_LEDGER"
