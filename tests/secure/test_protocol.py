"""Masked words add up to the plain sum, whoever drops out, and say nothing alone."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from recbole_fedras.errors import FederationError, PayloadError
from recbole_fedras.secure import keys
from recbole_fedras.secure.fixed_point import FixedPoint
from recbole_fedras.secure.protocol import SecureClient, SecureServer, threshold

N_WORDS = 50


class Round:
    """A round of clients 10, 11, ...; at each stage some fall silent for good."""

    def __init__(self, n: int, n_neighbours: int) -> None:
        self.clients = {10 + k: SecureClient(10 + k) for k in range(n)}
        # On this ring nobody loses more neighbours than the cases below allow.
        rng = Random(7)  # noqa: S311
        self.server = SecureServer(N_WORDS, n_neighbours, rng)
        words = np.random.default_rng(0)
        self.words = {
            client: words.integers(0, 2**32, N_WORDS).astype(np.uint32)
            for client in self.clients
        }

    def alive(self, silent=()):
        for client in silent:
            del self.clients[client]
        return self.clients.items()

    def share(self, no_keys=(), no_shares=()):
        for number, client in self.alive(no_keys):
            self.server.note_keys(number, client.public)
        self.server.draw_graph()
        for number, client in self.alive(no_shares):
            notes = client.shares(self.server.roster_of(number))
            self.server.note_shares(number, notes)

    def mask(self, no_words=()):
        for number, client in self.alive(no_words):
            masked = client.masked(self.words[number], self.server.shares_for(number))
            self.server.note_masked(number, masked)

    def reveal(self, unrevealed=()):
        for number, client in self.alive(unrevealed):
            self.server.note_revealed(number, client.reveal(self.server.masked))


@pytest.mark.parametrize(
    ("n", "n_neighbours", "silent"),
    [
        (4, 16, ((), (), (), ())),
        (10, 16, ((10,), (12,), (13,), (17,))),
        (12, 5, ((14,), (21,), (19,), (12,))),
        (12, 6, ((), (), (10, 15), ())),
        (9, 2, ((), (), (), ())),
    ],
)
def test_the_total_is_the_plain_sum_of_those_whose_words_came(n, n_neighbours, silent):
    one = Round(n, n_neighbours)
    no_keys, no_shares, no_words, unrevealed = silent
    one.share(no_keys, no_shares)
    one.mask(no_words)
    counted = list(one.clients)
    one.reveal(unrevealed)
    assert sorted(one.server.masked) == counted  # also who is silent afterwards
    plain = np.sum([one.words[client] for client in counted], 0, dtype=np.uint32)
    assert one.server.total().tolist() == plain.tolist()


def test_masked_words_are_noise_until_enough_have_revealed():
    one = Round(5, 16)
    one.words[11][:] = 0
    one.share()
    one.mask()
    masked = one.server.masked[11]
    share_of_bits = np.unpackbits(masked.view(np.uint8)).mean()
    assert abs(share_of_bits - 0.5) < 4 * 0.5 / np.sqrt(32 * N_WORDS)
    again = Round(5, 16)  # the same words, other keys
    again.words[11][:] = 0
    again.share()
    again.mask()
    assert (again.server.masked[11] != masked).mean() > 0.9
    one.reveal(unrevealed=(10, 12, 13))
    with pytest.raises(
        FederationError, match="shares of client 10's seed are left, of 3"
    ):
        one.server.total()


def test_a_client_tells_one_seed_of_a_neighbour_and_only_once():
    one = Round(5, 16)
    one.share()
    one.mask()
    client = one.clients[10]
    with pytest.raises(PayloadError, match="0 survivors, of 3 needed"):
        client.reveal([10])
    told = client.reveal([11, 12, 13])  # not 14
    assert {len(share) for share in told.values()} == {keys.SEED_BYTES}
    with pytest.raises(PayloadError, match="survivors"):
        client.reveal([11, 12, 13, 14])
    with pytest.raises(PayloadError, match="asked twice"):
        client.shares(one.server.roster_of(10))


def test_a_client_masks_once_and_with_enough_neighbours_only():
    one = Round(6, 16)
    one.share()
    client, notes = one.clients[10], one.server.shares_for(10)
    words = one.words[10]
    with pytest.raises(PayloadError, match="notes of 2, of 3 needed"):
        client.masked(words, dict(list(notes.items())[:2]))
    client.masked(words, notes)
    with pytest.raises(PayloadError, match="notes of 5"):
        client.masked(words, notes)


def test_who_sends_notes_that_nobody_can_read_silences_nobody():
    """A few of them do no harm; with many its own seeds are lost, and it is named."""
    for n_bad in (1, 4):
        one = Round(8, 16)
        one.share()
        for number, client in one.clients.items():
            notes = one.server.shares_for(number)
            if number > 17 - n_bad:  # of client 10: changed, or another's
                bad = notes[10][:-1] + bytes([notes[10][-1] ^ 1])
                notes[10] = notes[11] if number == 17 else bad
            one.server.note_masked(number, client.masked(one.words[number], notes))
        one.reveal()
        if n_bad == 4:
            with pytest.raises(FederationError, match="3 shares of client 10's seed"):
                one.server.total()
            return
        plain = np.sum([*one.words.values()], 0, dtype=np.uint32)
        assert one.server.total().tolist() == plain.tolist()


def test_fewer_shares_than_the_threshold_restore_nothing():
    seed = keys.new_seed()
    parts = dict(enumerate(keys.share(seed, threshold(7), 7)))
    enough = {place: parts[place] for place in (1, 4, 5, 6)}
    assert keys.restore(enough, 4, seed.__eq__) == (seed, [])
    del enough[4]
    assert keys.restore(enough, 3, seed.__eq__) == (None, [])


@pytest.mark.parametrize("no_words", [(), (10,)])
def test_a_wrong_share_is_found_out_and_named(no_words):
    """Of either seed: of a client's own mask, or of those shared with one lost."""
    one = Round(8, 16)
    one.share()
    one.mask(no_words)
    for number, client in one.clients.items():
        told = client.reveal(one.server.masked)
        if number == 12:
            told[10] = bytes([told[10][0] ^ 1]) + told[10][1:]
        one.server.note_revealed(number, told)
    plain = np.sum([one.words[c] for c in one.clients], 0, dtype=np.uint32)
    assert one.server.total().tolist() == plain.tolist()
    assert one.server.faults == [(12, "its share of client 10's seed is wrong")]


def test_a_client_whose_shares_are_wrong_is_named():
    """Nobody can take its masks away: those who share them keep their shares apart."""
    one = Round(6, 16)
    one.clients[13]._own_seed = keys.new_seed()  # after it has committed itself
    one.share()
    one.mask()
    one.reveal()
    with pytest.raises(FederationError, match="restore the seed of client 13"):
        one.server.total()


def test_fixed_point_sums_are_those_of_values_to_half_a_step_each():
    code, rng = FixedPoint(bound=4.0, n_clients=1000), np.random.default_rng(0)
    values = rng.uniform(-4, 4, (1000, 20))
    values[:, 0], values[:, 1] = 4.0, -4.0  # the furthest that a sum can be
    total = np.sum([code.encode(row) for row in values], 0, dtype=np.uint32)
    error = np.abs(code.decode(total) - values.sum(axis=0))
    assert error.max() <= 1000 * code.step / 2 + 1e-9
    cut = code.decode(code.encode(np.array([9.0, -9.0])))
    assert np.abs(cut - [4, -4]).max() <= code.step


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31)])
def test_a_key_that_nobody_can_agree_on_is_refused_when_it_comes(key):
    """Else its neighbours fall silent, and nobody takes its masks away."""
    one = Round(5, 16)
    sound = one.clients[10].public
    for public in (sound._replace(masking=key), sound._replace(sealing=key)):
        with pytest.raises(PayloadError, match="not a public key"):
            one.server.note_keys(10, public)
    one.server.note_keys(10, sound)
