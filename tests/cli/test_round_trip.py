"""What is exported comes back as it was, whatever it says: records made by hypothesis go through files and three homes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hostler.cli import cli
from hostler.records.objects import (
    Assistant,
    AssistantEvents,
    AssistantModel,
    ImageFilePart,
    ImageUrlPart,
    Message,
    Text,
    TextPart,
    Thread,
    ThreadAssistant,
    ThreadModel,
)

words = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
ids = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="/\\"), min_size=1, max_size=30
).filter(lambda value: value.isprintable() and value not in {".", "..", "runs"})
times = st.integers(1, 99_999_999_999)
metadata = st.dictionaries(words.filter(bool), words, max_size=3)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
resources = st.none() | st.dictionaries(words, plain, max_size=2)
parts = st.one_of(
    st.builds(TextPart, st.builds(Text, words, st.lists(plain, max_size=1))),
    st.builds(ImageUrlPart, st.fixed_dictionaries({"url": words.filter(bool)}, optional={"detail": words})),
    st.builds(ImageFilePart, st.fixed_dictionaries({"file_id": words.filter(bool)})),
)
tools = st.lists(st.sampled_from([{"type": "file_search"}, {"type": "function", "function": {"name": "f"}}]), max_size=2)
sampling = st.fixed_dictionaries(
    {}, optional={"temperature": st.floats(0, 2), "top_k": st.integers(0, 99), "stop": st.lists(words, max_size=2)}
)


@st.composite
def messages(draw, thread_id, id):
    created, status = draw(times), draw(st.sampled_from(["completed", "incomplete"]))
    role = draw(st.sampled_from(["user", "assistant"]))
    is_whole = status == "completed"
    return Message(
        id=id,
        created_at=created,
        created=created,
        thread_id=thread_id,
        role=role,
        content=draw(st.lists(parts, max_size=3)),
        file_ids=draw(st.lists(words.filter(bool), max_size=2, unique=True)),
        assistant_id=draw(st.none() | ids),
        run_id=draw(st.none() | ids),
        chat_completion_id=draw(st.none() | ids),
        metadata=draw(metadata),
        status=status,
        completed_at=draw(times) if is_whole and role == "assistant" else None,
        incomplete_at=None if is_whole else draw(times),
        incomplete_details=None if is_whole else draw(st.none() | st.just({"reason": "run_failed"})),
    )


@st.composite
def threads(draw, id):
    created = draw(times)
    assistants = [
        ThreadAssistant(
            assistant_id=assistant_id,
            assistant_name=draw(words),
            instructions=draw(st.none() | words),
            model=ThreadModel(
                draw(words), draw(st.just({}) | st.just({"ctx_len": 512})), draw(sampling), draw(st.none() | words)
            ),
            tools=draw(st.none() | tools),
        )
        for assistant_id in draw(st.lists(words.filter(bool), min_size=1, max_size=2, unique=True))
    ]
    thread = Thread(
        id=id,
        created_at=created,
        created=created,
        updated=draw(times),
        title=draw(words),
        assistants=assistants,
        assistant_ids=[one.assistant_id for one in assistants],
        metadata=draw(metadata),
        tool_resources=draw(resources),
    )
    turns = [draw(messages(id, name)) for name in draw(st.lists(ids, max_size=4, unique=True))]
    return [msgspec.structs.replace(thread, messages=[turn.id for turn in turns]), *turns]


@st.composite
def assistants(draw, id):
    created, model = draw(times), draw(words)
    return Assistant(
        id=id,
        created_at=created,
        created=created,
        version=draw(st.integers(0, 9)),
        name=draw(st.none() | words),
        description=draw(st.none() | words),
        avatar=draw(st.none() | words),
        model=model,
        models=[AssistantModel(model), *draw(st.lists(st.builds(AssistantModel, words.filter(bool)), max_size=1))]
        if model
        else [],
        instructions=draw(st.none() | words),
        tools=draw(tools),
        tool_resources=draw(resources),
        temperature=draw(st.none() | st.floats(0, 2)),
        top_p=draw(st.none() | st.floats(0, 1)),
        response_format=draw(st.sampled_from([None, "auto", {"type": "text"}])),
        parameters=draw(sampling),
        events=AssistantEvents(draw(st.lists(words, max_size=1)), draw(st.lists(words, max_size=1))),
        file_ids=draw(st.lists(words.filter(bool), max_size=2)),
        thread_location=draw(st.none() | words),
        metadata=draw(metadata),
    )


thread_sets = st.lists(ids, max_size=3, unique=True).flatmap(lambda names: st.tuples(*map(threads, names)))
assistant_sets = st.lists(ids.filter(lambda id: id != "jan"), max_size=3, unique=True).flatmap(
    lambda names: st.tuples(*map(assistants, names))
)
# Not shrunk: an example costs a tenth of a second, and its whole text is in the message.
some = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def hostler(home, *arguments, given=None):
    done = CliRunner().invoke(cli, ["--home", str(home), *arguments], input=given)
    assert done.exit_code == 0, done.output
    return done.stdout_bytes


def through_three_homes(kind, objects, *chosen):
    """Import what was made into one home, its export into a second by file, that one's into a third by a pipe."""
    with tempfile.TemporaryDirectory() as folder:
        first, second, third = (Path(folder) / name for name in ("first", "second", "third"))
        made, exported = Path(folder) / "made.jsonl", Path(folder) / "exported.jsonl"
        made.write_bytes(b"".join(msgspec.json.encode(value) + b"\n" for value in objects))
        hostler(first, kind, "import", str(made))
        lines = hostler(first, kind, "export", "--", *chosen)
        hostler(first, kind, "export", "--output", str(exported), "--", *chosen)
        assert exported.read_bytes() == lines
        hostler(second, kind, "import", str(exported))
        again = hostler(second, kind, "export", "--", *chosen)
        hostler(third, kind, "import", "-", given=again)
        assert again == lines
        assert hostler(third, kind, "export", "--", *chosen) == lines
    return [msgspec.json.decode(line) for line in lines.splitlines()]


def wire(value):
    return msgspec.json.decode(msgspec.json.encode(value))


@some
@given(thread_sets)
def test_threads_with_their_messages_come_back_as_they_were(sets):
    found = through_three_homes("threads", [value for values in sets for value in values])

    # The list is by time, then by the order in which they came; each thread stands before its own messages.
    expected = [wire(value) for values in sorted(sets, key=lambda values: values[0].created_at) for value in values]
    assert found == expected


@some
@given(assistant_sets)
def test_assistants_come_back_as_they_were(made):
    found = through_three_homes("assistants", made, *(one.id for one in made))

    if made:
        assert found == [wire(one) for one in made]
    else:
        assert [one["id"] for one in found] == ["jan"]  # none was chosen: all of them
