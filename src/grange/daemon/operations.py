"""The numbers of the worker protocol. Source: Nix, libstore/worker-protocol.hh and store-api.hh."""

from enum import IntEnum


class Op(IntEnum):
    """The operations we use."""

    ADD_TO_STORE = 7
    BUILD_PATHS = 9
    ENSURE_PATH = 10
    ADD_TEMP_ROOT = 11
    ADD_INDIRECT_ROOT = 12
    FIND_ROOTS = 14
    SET_OPTIONS = 19
    COLLECT_GARBAGE = 20
    QUERY_PATH_INFO = 26
    QUERY_VALID_PATHS = 31
    BUILD_DERIVATION = 36
    NAR_FROM_PATH = 38
    ADD_TO_STORE_NAR = 39
    ADD_MULTIPLE_TO_STORE = 44
    ADD_PERM_ROOT = 47  # since protocol 1.36


class BuildMode(IntEnum):
    NORMAL = 0
    REPAIR = 1
    CHECK = 2  # build again and compare


class GcAction(IntEnum):
    """What `Daemon.collect_garbage` does with the paths it finds."""

    RETURN_LIVE = 0
    RETURN_DEAD = 1
    DELETE_DEAD = 2
    DELETE_SPECIFIC = 3  # only the paths given, and an error where one of them is alive
