#!/bin/sh
# Runs a compiler, and takes one of its remarks for an error. C7510: ptxas has serialised wgmma instructions, a kernel that is
# right and several times too slow; it says so as information, so no -Werror reaches it.
out=$("$@" 2>&1)
status=$?
[ -z "$out" ] || printf '%s\n' "$out" >&2
case $out in
*C7510*)
    echo "error: ptxas serialised matrix instructions (C7510)" >&2
    exit 1
    ;;
esac
exit $status
