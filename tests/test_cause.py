"""What is said of a fault of the disk names what is at fault, and a remedy that fits it."""

import errno
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from trials import mounted

from gateway.disk import Disk, remedy
from hil.loopdisk import LoopDisk

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def said(directory: Path) -> str:
    """Return what is said when a file is written in the directory; it is made, where it is not."""
    with pytest.raises(OSError, match=r"\w") as met:
        write(Disk(directory))
    return remedy(met.value, directory)


def write(disk: Disk) -> None:
    disk.names()
    disk.write("journal", 0, bytes(1 << 20))
    disk.sync("journal")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


def a_link(path: Path) -> None:
    path.symlink_to("/none/such")


@pytest.mark.parametrize(
    ("stands", "kind"),
    [
        (Path.mkdir, "Is a directory: a directory"),
        (a_pipe, "Illegal seek: a pipe"),
        (a_socket, "No such device or address: a socket"),
        (a_link, "No such file or directory: a link that leads nowhere"),
    ],
)
def test_what_stands_in_place_of_a_file_is_named(
    tmp_path: Path, stands: Callable[[Path], None], kind: str
):
    stands(tmp_path / "journal")
    assert said(tmp_path) == f"{tmp_path}/journal: {kind} stands there: move it away"


@pytest.mark.parametrize("state", ["state", "state/below", "state/far/below"])
@pytest.mark.parametrize(
    ("stands", "kind"), [(Path.touch, "a file"), (a_pipe, "a pipe"), (a_link, "a link that leads")]
)
def test_what_stands_in_place_of_the_directory_or_above_it_is_named(
    tmp_path: Path, stands: Callable[[Path], None], kind: str, state: str
):
    stands(tmp_path / "state")
    told = said(tmp_path / state)
    assert told.startswith(f"{tmp_path}/state: ")
    assert f": {kind}" in told
    assert told.endswith("stands there: move it away, or set [gateway] state_dir elsewhere")


def test_a_link_to_itself_is_named(tmp_path: Path):
    (tmp_path / "state").symlink_to("state")
    assert said(tmp_path / "state" / "below").startswith(f"{tmp_path}/state: ")


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A directory that a stranger may write in; from now on it is one who runs this."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        os.seteuid(65533)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


def of_root(path: Path, mode: int) -> Path:
    """Give the path to root with these rights, as it is or as a directory."""
    os.seteuid(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.mkdir()
    os.chown(path, 0, 0)
    path.chmod(mode)
    os.seteuid(65533)
    return path


@needs_root
@pytest.mark.parametrize("state", ["closed/state", "closed/yet/state"])
def test_a_parent_that_lets_nobody_pass_is_named_and_not_given_away(stranger: Path, state: str):
    closed = of_root(stranger / "closed", 0o700)
    assert said(stranger / state) == (
        f"{closed}: Permission denied: bygate may not pass through it: sudo chmod o+x {closed}, "
        "or set [gateway] state_dir elsewhere"
    )


@needs_root
@pytest.mark.parametrize("state", ["link", "link/yet"])
def test_a_directory_that_lets_nobody_pass_is_named_behind_a_link(stranger: Path, state: str):
    closed = of_root(stranger / "closed", 0o700)
    (stranger / "link").symlink_to(closed / "state")
    assert said(stranger / state).startswith(
        f"{closed}: Permission denied: bygate may not pass through it: sudo chmod o+x {closed}, "
    )


@needs_root
def test_what_a_link_leads_to_is_to_be_given_to_bygate(stranger: Path):
    theirs = of_root(stranger / "theirs", 0o755)
    (stranger / "link").symlink_to(theirs)
    assert said(stranger / "link").endswith(f"sudo chown -R bygate {theirs}")


@needs_root
def test_a_file_behind_a_link_is_to_be_given_to_bygate(stranger: Path):
    (stranger / "elsewhere").touch()
    theirs = of_root(stranger / "elsewhere", 0o600)
    (stranger / "state").mkdir()
    (stranger / "state" / "journal").symlink_to(theirs)
    assert said(stranger / "state").endswith(f"sudo chown -R bygate {theirs}")


@needs_root
@pytest.mark.parametrize("state", ["theirs/state", "theirs/yet/state"])
def test_a_parent_in_which_nothing_can_be_made_is_not_given_away(stranger: Path, state: str):
    theirs = of_root(stranger / "theirs", 0o755)
    assert said(stranger / state) == (
        f"{theirs}: Permission denied: bygate may make nothing in it: sudo install -d -o bygate "
        f"{stranger / state}, or set [gateway] state_dir elsewhere"
    )


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_directory_of_somebody_else_is_to_be_given_to_bygate(stranger: Path, mode: int):
    state = of_root(stranger / "state", mode)
    assert said(state) == (
        f"{state}: Permission denied: give it to the user that bygate runs as: sudo chown -R "
        f"bygate {state}"
    )


@needs_root
def test_a_file_of_somebody_else_is_named(stranger: Path):
    (stranger / "journal").touch()
    of_root(stranger / "journal", 0o600)
    assert said(stranger) == (
        f"{stranger}/journal: Permission denied: give it to the user that bygate runs as: "
        f"sudo chown -R bygate {stranger}"
    )


@needs_root
def test_what_is_ours_and_read_only_needs_no_other_owner(stranger: Path):
    (stranger / "journal").touch(0o400)
    told = said(stranger)
    assert told.startswith(f"{stranger}/journal: Permission denied: its owner may not: ")
    assert told.endswith(f"sudo chmod -R u+rwX {stranger}")


@needs_root
def test_rights_that_are_there_are_not_asked_for(tmp_path: Path):
    told = remedy(PermissionError(errno.EACCES, "Permission denied"), tmp_path)
    assert "its mode allows it: see dmesg for AppArmor" in told


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    with ExitStack() as stack:
        yield mounted(stack, LoopDisk(8 << 20, tmp_path, "a disk", inodes=16))


def test_a_file_system_that_is_read_only_is_named_by_its_mount(disk: LoopDisk):
    disk.mount_again("ro")
    assert said(disk.path / "state") == (
        f"{disk.path}/state: Read-only file system: look for the cause in dmesg, then "
        f"mount -o remount,rw {disk.path}"
    )


def test_mounts_with_names_that_are_no_text_hide_none(tmp_path: Path):
    with ExitStack() as stack:
        named = mounted(stack, LoopDisk(8 << 20, tmp_path, os.fsdecode(b"caf\xe9"), inodes=16))
        named.mount_again("ro")
        assert said(named.path / "state").endswith(f"mount -o remount,rw {named.path}")


def test_a_mount_that_is_read_only_alone_is_told_from_that(disk: LoopDisk):
    mount = ["mount", "-o", "remount,bind,ro", str(disk.path)]
    subprocess.run(mount, check=True)
    told = said(disk.path)
    assert "only this mount of it is: under systemd name it by ReadWritePaths=" in told
    assert told.endswith(f"mount -o remount,bind,rw {disk.path}")


def test_out_of_inodes_is_told_from_a_full_disk(disk: LoopDisk):
    with pytest.raises(OSError, match="No space left"):
        for number in range(99):
            (disk.path / f"hog-{number}").touch()
    assert said(disk.path) == (
        f"{disk.path}: No space left on device: out of inodes: remove small files there, "
        f"`df -i {disk.path}` counts them"
    )
    (disk.path / "hog-0").unlink()
    with (disk.path / "hog-1").open("wb", buffering=0) as hog, pytest.raises(OSError, match="left"):
        while hog.write(bytes(1 << 12)):
            pass
    assert said(disk.path).endswith("free space there, or set [buffer] max_size")


@pytest.mark.parametrize("which", ["", "journal"])
def test_what_is_protected_is_found_by_lsattr(disk: LoopDisk, which: str):
    (disk.path / "journal" if which else disk.path / "other").touch()
    if subprocess.run(["chattr", "+i", str(disk.path / which)], check=False).returncode:
        pytest.skip("nothing can be protected here")
    told = said(disk.path)
    subprocess.run(["chattr", "-i", str(disk.path / which)], check=True)
    assert told == (
        f"{disk.path}/journal: Operation not permitted: it is protected: lsattr -a {disk.path} "
        "marks by i or a what is, sudo chattr -ia lifts it"
    )


@pytest.mark.parametrize(
    ("number", "mends"),
    [
        (errno.EIO, "the disk fails: replace the SD card or drive"),
        (errno.ESTALE, "the drive behind it is gone"),
        (errno.ENOTCONN, "the drive behind it is gone"),
        (errno.EDQUOT, "free space or remove files there, or raise the quota"),
        (errno.EMFILE, "too many files are open"),
    ],
)
def test_what_ails_all_of_a_disk_is_told_of_the_directory(tmp_path: Path, number: int, mends: str):
    error = OSError(number, os.strerror(number), str(tmp_path / "00000007.seg"))
    assert remedy(error, tmp_path).startswith(f"{tmp_path}: {os.strerror(number)}: {mends}")


@pytest.mark.parametrize("number", [errno.EUCLEAN, errno.EBADMSG])
def test_what_is_damaged_of_a_file_system_is_named(tmp_path: Path, number: int):
    error = OSError(number, os.strerror(number), str(tmp_path / "refused.list"))
    assert remedy(error, tmp_path) == (
        f"{tmp_path}/refused.list: {os.strerror(number)}: its file system is damaged: umount it "
        "and run fsck"
    )
