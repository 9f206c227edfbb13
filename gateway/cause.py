"""Says which path a fault of the disk is about, and what mends it there.

What ails a whole file system is told of the directory that is worked in. What ails one path is told
of that path: a parent that lets nobody pass, a pipe where a file belongs.
"""

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
ELSEWHERE = "set [gateway] state_dir to a directory on a disk"
_OTHER = "or set [gateway] state_dir elsewhere"

_GONE = (
    "the drive behind it is gone: is it plugged in, or its server reached? Then umount it, mount it"
    " anew"
)
_DAMAGED = "its file system is damaged: umount it and run fsck"
_OPEN = "too many files are open: restart bygate; lsof shows what has them"
_OF_ALL = {
    errno.EDQUOT: "free space or remove files there, or raise the quota",
    errno.EIO: "the disk fails: replace the SD card or drive; was it unplugged? See dmesg",
    **dict.fromkeys((errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT), _GONE),
    **dict.fromkeys((errno.EHOSTDOWN, errno.EHOSTUNREACH), _GONE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _OPEN),
    errno.ENOMEM: "the memory of this box is used up: see free -h, and top for what has it",
    errno.EWOULDBLOCK: "stop that one, or give this one a [gateway] state_dir of its own",
}
_OF_ONE = {
    **dict.fromkeys((errno.EUCLEAN, errno.EBADMSG), _DAMAGED),
    errno.EBUSY: "something is mounted there: umount it",
    errno.EFBIG: "larger than a file may be there: see ulimit -f",
    errno.ENOENT: "it is gone: did somebody remove it, or umount what it is on?",
    errno.ENAMETOOLONG: "set [gateway] state_dir to a shorter path",
}
_IN_PLACE = (
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ESPIPE, errno.ENXIO),
)
"""What Linux says where something else stands than belongs there."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a link that leads nowhere",
}
_HIDDEN = ("/home", "/root", "/run/user")
"""What ProtectHome= of the unit hides from the daemon."""


def cause(error: OSError, path: Path) -> tuple[Path, str]:
    """Return what is at fault, and what mends it.

    `path` is what was worked in: the state directory, or one in it. The error may know better.
    """
    number, met = error.errno or 0, path
    if error.filename:
        met = Path(os.fsdecode(error.filename))
    with suppress(OSError):  # what was met a moment ago may be gone, or closed, by now
        return _looked_into(number, met, path)
    return met, ELSEWHERE


def _looked_into(number: int, met: Path, path: Path) -> tuple[Path, str]:
    if number in _ASKED_OF_ALL:
        return path, _ASKED_OF_ALL[number](_there(path))
    if number in _OF_ALL:
        return path, _OF_ALL[number]
    if number == errno.EACCES:
        return _of_rights(_real(met), _real(path))
    if number == errno.EPERM:
        return met, _of_protection(_there(met))
    if number in _IN_PLACE or (number == errno.ENOENT and met.is_symlink()):
        return _of_what_stands(met.absolute(), path.absolute())
    return met, _OF_ONE.get(number, ELSEWHERE)


def _real(path: Path) -> Path:
    """Return where links lead, as far as they can be followed."""
    return Path(os.path.realpath(path))


def _there(path: Path) -> Path:
    """Return the path, or the first above it that there is."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


# Of a whole file system


def out_of_inodes(path: Path) -> bool:
    """Whether a file system has free blocks, and no inode for one file more; raises OSError.

    Some, such as btrfs, have no fixed number of them, and tell none.
    """
    free = os.statvfs(path)
    return free.f_files > 0 and free.f_favail == 0 < free.f_bavail


def _of_a_full_disk(path: Path) -> str:
    if out_of_inodes(path):
        return f"out of inodes: remove small files there, `df -i {path}` counts them"
    return "free space there, or set [buffer] max_size"


def _of_a_read_only_mount(path: Path) -> str:
    mount, alone = _mount(path)
    if alone:
        return (
            "only this mount of it is: under systemd name it by ReadWritePaths= (systemctl edit "
            f"bygate), else mount -o remount,bind,rw {mount}"
        )
    return f"look for the cause in dmesg, then mount -o remount,rw {mount}"


def _mount(path: Path) -> tuple[Path, bool]:
    """Return where it is mounted, and whether its file system can be written to elsewhere."""
    found = Path("/"), False
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]:
        here, _, device = line.partition(" - ")
        at = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), here.split()[4]))
        if _real(path).is_relative_to(at) and at.is_relative_to(found[0]):  # the last is on top
            found = at, "rw" in device.split()[-1].split(",")
    return found


_ASKED_OF_ALL = {errno.ENOSPC: _of_a_full_disk, errno.EROFS: _of_a_read_only_mount}

# Of one path


def _of_rights(met: Path, path: Path) -> tuple[Path, str]:
    """Look from the root on: what is behind a closed directory cannot even be looked at."""
    for parent in (*reversed(path.parents), *reversed(met.parents)):
        if os.path.lexists(parent) and not _may(parent, os.X_OK):
            return parent, _let_pass(parent)
    there = _there(met)
    if there in path.parents:
        return there, f"bygate may make nothing in it: sudo install -d -o bygate {path}, {_OTHER}"
    closed = next((at for at in (path, there) if not _may(at, _needed(at))), there)
    return closed, _give(closed, path)


def _may(path: Path, how: int) -> bool:
    return os.access(path, how, effective_ids=True)


def _needed(path: Path) -> int:
    return os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)


def _let_pass(parent: Path) -> str:
    if str(parent) in _HIDDEN:
        return "systemd hides it from bygate (ProtectHome=): set [gateway] state_dir elsewhere"
    return f"bygate may not pass through it: sudo chmod o+x {parent}, {_OTHER}"


def _give(closed: Path, path: Path) -> str:
    if _may(closed, _needed(closed)):
        return (
            "its mode allows it: see dmesg for AppArmor or SELinux, on a network drive its server"
        )
    whole = path if closed.is_relative_to(path) else closed
    if closed.stat().st_uid == os.geteuid():
        return f"its owner may not: sudo chmod -R u+rwX {whole}"
    return f"give it to the user that bygate runs as: sudo chown -R bygate {whole}"


def _of_protection(there: Path) -> str:
    inside = there if there.is_dir() else there.parent
    return f"it is protected: lsattr -a {inside} marks by i or a what is, sudo chattr -ia lifts it"


def _of_what_stands(met: Path, path: Path) -> tuple[Path, str]:
    for at in (*reversed(met.parents), met):
        if os.path.lexists(at) and (at == met or not at.is_dir()):
            kind = _KINDS.get(stat.S_IFMT(at.lstat().st_mode), "something else")
            if at.is_symlink() and at.exists():
                kind = "a link to something else"
            inside = at != path and at.is_relative_to(path)
            return at, f"{kind} stands there: move it away" + ("" if inside else f", {_OTHER}")
    return met, _OF_ONE[errno.ENOENT]
