"""How a vendor's audio is cut, and what of a text a vendor is given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshag.connectors.pieces import Pieces, sayable

pytestmark = pytest.mark.unit


class TestPieces:
    @given(st.sampled_from([8_000, 22_050, 24_000, 48_000]), st.lists(st.binary(max_size=40) | st.just(b"x" * 9_601)))
    def test_all_of_it_in_pieces_of_20_to_200_ms(self, rate_hz: int, arriving: list[bytes]) -> None:
        cut = Pieces(rate_hz)
        pieces = [piece for pcm in arriving for piece in cut.push(pcm)]
        last = list(cut.flush())
        whole = b"".join(arriving)
        assert b"".join(pieces + last) == whole[: len(whole) // 2 * 2]
        assert all(len(piece) % 2 == 0 for piece in pieces + last)
        assert len(last) <= 1
        assert all(rate_hz * 0.02 - 1 <= len(piece) // 2 <= rate_hz * 0.2 for piece in pieces)
        assert all(len(piece) // 2 <= rate_hz * 0.1 for piece in pieces[:1])
        assert cut.begun == bool(pieces + last)

    def test_what_is_there_goes_on_at_once(self) -> None:
        cut = Pieces(24_000)
        assert [len(piece) for piece in cut.push(bytes(4_000))] == [4_000]
        assert list(cut.push(bytes(959))) == []
        assert [len(piece) for piece in cut.push(bytes(1))] == [960]

    def test_no_short_rest_is_left_waiting(self) -> None:
        cut = Pieces(24_000)
        assert sum(map(len, cut.push(bytes(4_800 + 400)))) == 5_200


class TestSayable:
    @pytest.mark.parametrize("text", ["", " ", "...", "—", "\x00", "😀", "\ud83d"])
    def test_nothing_to_say(self, text: str) -> None:
        assert sayable(text) == ""

    @given(st.text())
    def test_it_can_be_sent_by_any_protocol(self, text: str) -> None:
        clean = sayable(text)
        clean.encode()
        assert clean.isprintable() or not clean.isascii()
        assert not set(clean) & set(map(chr, range(32)))
        assert sayable(clean) == clean

    def test_what_can_be_said_stays(self) -> None:
        assert sayable("  Fünf  <b> & 你好,\nworld! ") == "Fünf <b> & 你好, world!"
