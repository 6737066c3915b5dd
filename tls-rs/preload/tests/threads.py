"""Threads, processes, TLS and ctypes, with more pthread keys than libc has."""

import concurrent.futures
import ctypes
import hashlib
import multiprocessing
import ssl
import subprocess
import sys
import threading

libc = ctypes.CDLL(None)
local = threading.local()


def use_keys(count):
    """Creates keys, sets them in this thread and in a new one, and deletes them."""
    keys = []
    for _ in range(count):
        key = ctypes.c_uint()
        assert libc.pthread_key_create(ctypes.byref(key), None) == 0
        keys.append(key.value)
    assert len(set(keys)) == count
    libc.pthread_getspecific.restype = ctypes.c_void_p

    def set_all(offset):
        for i, key in enumerate(keys):
            assert libc.pthread_getspecific(key) is None
            assert libc.pthread_setspecific(key, ctypes.c_void_p(offset + i)) == 0
        for i, key in enumerate(keys):
            assert libc.pthread_getspecific(key) == offset + i
        local.value = offset

    set_all(1)
    other = threading.Thread(target=set_all, args=(10_000,))
    other.start()
    other.join()
    assert local.value == 1
    for key in keys:
        assert libc.pthread_key_delete(key) == 0
    return count


def work(number):
    ssl.create_default_context()
    return hashlib.sha256(str(number).encode()).hexdigest()


if __name__ == "__main__":
    assert use_keys(3000) == 3000
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(work, range(200)))) == 200
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(use_keys, [2000, 2500]) == [2000, 2500]
    # A program that this one starts gets the library, too.
    command = (
        "import ctypes, sys; key = ctypes.c_uint(); create = ctypes.CDLL(None).pthread_key_create; "
        "sys.exit(any(create(ctypes.byref(key), None) for _ in range(2000)))"
    )
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
