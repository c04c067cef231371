"""Answers that repeat what was asked, and answers that do not: what drafting from the prompt gains and what it costs.

A text is some sentences of a pool in random order, so that no two rounds ask alike; the request asks for it once more, word
for word, in a chat where it was copied once already: asked for the first time, a small model in a coarse type loses the thread
(of SmolLM2's answers in Q4_0 0.24 to 0.91 were copies). `copied` tells how much of the answer stands in the text: a model that
does not copy measures something else.
"""

from __future__ import annotations

import difflib
import random

from answers import Reply
from servers import Server
from streamclient import Request, run_clients
from workloads import draw, make_body, summarise

N_SENTENCES = 10
N_TOKENS = 160
"""Of an answer; less than the text has, so that the copy never runs out of it."""

COPY = "Copy this text word for word, and write nothing else:"

UNITS = {
    "decode_tok_s": "tok/s",
    "worker_decode_tok_s": "tok/s",
    "itl_p50": "ms",
    "copied": "share",
    "drafted": "tok",
    "draft_accepted": "tok",
    "errors": "requests",
}

SENTENCES = """
The ferry left the harbour a little after six, and nobody on deck spoke until the lighthouse was behind us.
My grandmother kept her recipes in a biscuit tin, written on the backs of old electricity bills.
When the snow melted in April, the farmer found that half of his fence had been carried down to the river.
Please check the pressure of all four tyres before you start, because the road over the pass is rough.
Our library opens at nine on weekdays and at ten on Saturdays, but the reading room stays closed in August.
She tuned the violin twice, laid it back in its case, and decided to play the piano instead.
Three engineers spent a week looking for the fault, which turned out to be a single loose screw.
A good loaf needs flour, water, salt and patience, and most people only lack the last of these.
The museum bought the painting in 1931 for less than the price of a bicycle.
He promised to write every Sunday, and for nearly eleven years he kept his word.
If the alarm rings at night, leave by the stairs and wait for the others under the big chestnut tree.
Copper turns green in the rain, while gold looks the same after a thousand years in the ground.
The committee will meet on Thursday to discuss the budget for the new swimming pool.
Nobody in the village remembered who had planted the row of poplars along the canal.
Between the two world wars the factory made sewing machines, and later it made radios.
You can see four lakes from the top of the hill, but only when the wind comes from the north.
The baker's youngest son became an astronomer and named a comet after his dog.
Bees find their way home by the sun, even when clouds hide most of the sky.
We painted the kitchen yellow, which was a mistake, and then blue, which was a bigger one.
Each passenger may take one suitcase and one small bag; skis and bicycles cost extra.
The old clock in the station runs four minutes fast so that people do not miss their trains.
Wolves have come back to the forest, and the deer have become more careful since then.
After the concert the singer drank tea with honey and answered questions for an hour.
Two thirds of the harvest was lost in the storm, so the price of apples rose quickly.
His first novel sold ninety copies, most of them to members of his own family.
The bridge is closed for repairs until the end of May, and buses take the road through Milton.
A whale's heart beats only a few times a minute when it dives into deep water.
Dear guests, breakfast is served in the garden unless it rains, from half past seven onwards.
They measured the temperature of the well every morning and wrote it down in a green notebook.
Glass is made from sand, soda and lime, heated until it glows like the evening sun.
The teacher asked for silence, opened the window, and let the class listen to the blackbird.
In winter the ships cannot reach the island, so everything that people need arrives by plane.
The price includes the tent, the cooking pots and a guide who knows the mountains well.
Our neighbour repairs umbrellas, a trade that his father learnt from a travelling salesman in Vienna.
It took the detective a moment to notice that the photograph on the wall had been turned around.
Fresh paint smells strong, so keep the door open and do not sleep in the room tonight.
The first railway in the country was eleven kilometres long and carried mostly coal and salt.
Maria speaks five languages, but she counts and swears only in Portuguese.
Some of the stones in the church wall came from a Roman bath on the other side of the river.
Turn left at the mill, follow the stream for a mile, and you will find the house with the red roof.
""".strip().splitlines()


def make_text(*seed: object) -> str:
    """Some sentences in random order."""
    return " ".join(random.Random(repr(seed)).sample(SENTENCES, N_SENTENCES))


def measure(server: Server, round_name: str, seed: int, is_copy: bool, n_requests: int = 4) -> dict[str, float]:
    """Some requests one after the other; every server of a round gets the same."""
    texts, requests = [], []
    for number in range(n_requests):
        text = make_text(seed, round_name, number)
        if not is_copy:
            text = draw(60, seed, "copies", round_name, number)
        asked = {"role": "user", "content": f"{COPY}\n\n{text}" if is_copy else text}
        texts.append(text)
        messages = [asked, {"role": "assistant", "content": text}, asked] if is_copy else [asked]
        body = make_body(server.model, messages, N_TOKENS)
        requests.append(Request("/chat/completions", body))
    (replies,) = run_clients(server.address, [requests])
    return evaluate(texts, replies)


def evaluate(texts: list[str], replies: list[Reply]) -> dict[str, float]:
    """The metrics of a round."""
    result = summarise([replies])
    good = [(text, reply) for text, reply in zip(texts, replies, strict=True) if reply.error is None]
    if good:
        result["copied"] = sum(copied(text, reply.text) for text, reply in good) / len(good)
        drafts = [reply.timings for _, reply in good if reply.timings and "draft_n" in reply.timings]
        if drafts:
            result["drafted"] = sum(timings["draft_n"] for timings in drafts)
            result["draft_accepted"] = sum(timings.get("draft_accepted_n", 0) for timings in drafts)
    return result


def copied(text: str, answer: str) -> float:
    """The share of the answer's words that stand in the text in the same order."""
    words = answer.split()
    blocks = difflib.SequenceMatcher(None, text.split(), words, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(words) if words else 0.0
