import pytest

from gateway.frame import Frame, Framer, Length

FIXED = Frame(start=b"\xaa\xc0", length=10)
COUNTED = Frame(start=b"BM", length=Length(at=2, size=2, extra=4))
LINES = Frame(start=b"$", end=b"\r\n")


def frames(frame: Frame, *chunks: bytes) -> list[bytes]:
    framer, found = Framer(frame), []
    for chunk in chunks:
        framer.feed(chunk)
        while (cut := framer.next()) is not None:
            found.append(cut)
    return found


GOOD = {
    FIXED: b"\xaa\xc0\x01\x02\x03\x04\x05\x06\x07\xab",
    COUNTED: b"BM\x00\x03abc",
    LINES: b"$WIMWV,1*00\r\n",
}


@pytest.mark.parametrize("frame", GOOD)
def test_noise_before_between_and_after_frames_is_passed_over(frame: Frame):
    good = GOOD[frame]
    assert frames(frame, b"\x00noise" + good + b"\xff\xff" + good + b"tail") == [good, good]


@pytest.mark.parametrize("frame", GOOD)
def test_a_frame_may_come_a_byte_at_a_time(frame: Frame):
    good = GOOD[frame]
    assert frames(frame, *(bytes([byte]) for byte in good + good)) == [good, good]


@pytest.mark.parametrize("frame", GOOD)
def test_half_a_frame_alone_is_no_frame(frame: Frame):
    assert frames(frame, GOOD[frame][:-1]) == []


@pytest.mark.parametrize("frame", GOOD)
def test_a_good_frame_behind_half_of_one_is_found_once_the_bad_one_is_rejected(frame: Frame):
    good, framer = GOOD[frame], Framer(frame)
    framer.feed(good[:4] + good)
    found = framer.next()
    while found is not None and found != good:
        framer.reject()
        found = framer.next()
    assert found == good


def test_a_false_start_inside_a_bad_frame_is_not_a_bad_frame_of_its_own():
    framer = Framer(FIXED)
    for chunk in (b"\xaa\xc0\xaa\xc0", b"45678", b"9" + GOOD[FIXED][:4]):
        framer.feed(chunk)
    assert framer.next() == b"\xaa\xc0\xaa\xc0456789"
    assert framer.reject()
    assert framer.next() == b"\xaa\xc0456789\xaa\xc0"
    assert not framer.reject()
    framer.feed(b"34567890")
    assert framer.next() == b"\xaa\xc0\x01\x02345678"
    assert framer.reject()
    assert framer.next() is None


def test_a_later_start_before_the_end_of_a_line_begins_the_frame():
    assert frames(LINES, b"$WIMWV,27$WIMWV,1*00\r\n") == [b"$WIMWV,1*00\r\n"]


def test_an_impossible_length_is_noise():
    assert frames(COUNTED, b"BM\xff\xffBM\x00\x01x") == [b"BM\x00\x01x"]


def test_a_line_that_never_ends_is_given_up_at_the_longest_frame():
    framer = Framer(Frame(start=b"$", end=b"\n", longest=8))
    framer.feed(b"$123456789" + b"$ok\n")
    assert framer.next() == b"$ok\n"


def test_a_babbling_line_is_kept_within_bounds():
    framer = Framer(LINES)
    for _ in range(1000):
        framer.feed(b"x" * 4096)
    assert len(framer._stream) <= 4096
    assert framer.next() is None
    assert framer.skipped == 4096 * 1000


def test_lines_without_a_start_are_cut_at_their_end():
    assert frames(Frame(end=b"\n"), b"half\nT=1\n") == [b"half\n", b"T=1\n"]


def test_a_frame_that_cannot_be_cut_is_refused_when_declared():
    with pytest.raises(ValueError, match="either a length or an end"):
        Frame(start=b"$")
    with pytest.raises(ValueError, match="needs a start"):
        Frame(length=3)
