"""detach_link.py CGROUP HOOK: detaches every BPF link from one hook of a cgroup, from outside.

CGROUP is a directory, HOOK a number of enum bpf_attach_type. Prints how many links that were. The
links stay open in the process that made them, and do nothing any more.
"""

import ctypes
import errno
import os
import struct
import sys

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
OBJ_GET_INFO_BY_FD, LINK_GET_FD_BY_ID, LINK_GET_NEXT_ID, LINK_DETACH = 15, 30, 31, 34
LINK_TYPE_CGROUP = 3
LIBC = ctypes.CDLL(None, use_errno=True)


def bpf(command, attribute):
    result = LIBC.syscall(SYS_BPF, command, attribute, len(attribute))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}")
    return result


def links():
    """The ids of all links."""
    number = 0
    while True:
        attribute = ctypes.create_string_buffer(struct.pack("III", number, 0, 0), 12)
        try:
            bpf(LINK_GET_NEXT_ID, attribute)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        number = struct.unpack_from("I", attribute, 4)[0]
        yield number


def where(link):
    """The id of the cgroup and the hook that a link is on."""
    info = ctypes.create_string_buffer(64)
    attribute = struct.pack("IIQ", link, len(info), ctypes.addressof(info))
    bpf(OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(attribute, len(attribute)))
    kind = struct.unpack_from("I", info, 0)[0]
    return struct.unpack_from("QI", info, 16) if kind == LINK_TYPE_CGROUP else None


wanted = (os.stat(sys.argv[1]).st_ino, int(sys.argv[2]))
detached = 0
for number in list(links()):
    link = bpf(LINK_GET_FD_BY_ID, ctypes.create_string_buffer(struct.pack("III", number, 0, 0), 12))
    if where(link) == wanted:
        bpf(LINK_DETACH, ctypes.create_string_buffer(struct.pack("I", link), 4))
        detached += 1
    os.close(link)
print(detached)
