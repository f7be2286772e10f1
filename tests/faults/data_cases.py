"""Malformed data of a run: PRISM and GlobalOpinionQA."""

import pathlib
from collections.abc import Callable, Iterator

from tests.faults import whole
from tests.faults.damage import FEW, PLACES, VALUES, Case, Place, changed, json_lines, of_lines, over, without, writes


def prism(place: Place) -> list[str]:
    return place.whole.run(place.folder, "--config.data.source=prism", f"--config.data.path={place.folder}")


def spoilt_prism(file: str, spoil: Callable[[pathlib.Path], object]) -> Callable[[Place], list[str]]:
    """`scpo run` on PRISM's two files, one of them replaced by what `spoil` puts in its place."""

    def make(place: Place) -> list[str]:
        for name in whole.PRISM:
            if name != file:
                over(place.folder, name, json_lines(whole.PRISM[name]))
        spoil(place.folder / file)
        return prism(place)

    return make


def of_prism() -> Iterator[Case]:
    for file, rows in whole.PRISM.items():
        for name, spoil in of_lines(rows):
            if file == "utterances.jsonl" and name not in FEW:
                continue
            yield Case(f"{file}: {name}", spoilt_prism(file, spoil), file)
    survey, utterances = whole.PRISM.values()
    texts = ("utterance_id", "user_id", "interaction_id", "user_prompt", "model_response")
    for field in (*texts, "score"):
        yield Case(
            f"utterances.jsonl: no {field}",
            spoilt_prism("utterances.jsonl", writes(without(utterances, 2, field))),
            "utterances.jsonl:3",
        )
        for name, value in VALUES.items():
            if field in ("model_response", "score") and (field, name) != ("score", "a number"):
                bad = writes(changed(utterances, 2, **{field: value}))
                yield Case(
                    f"utterances.jsonl: {field} is {name}", spoilt_prism("utterances.jsonl", bad), "utterances.jsonl:3"
                )
    bad_utterances = {
        "score 1e999": json_lines(utterances).replace(b'"score": 0', b'"score": 1e999'),
        "score NaN": changed(utterances, 1, score=float("nan")),
        "score as text": changed(utterances, 1, score="70"),
        "a huge score": changed(utterances, 1, score=10**400),
        "an id twice": changed(utterances, 3, utterance_id="u0"),
        "a blank id": changed(utterances, 3, utterance_id="  "),
        "an unknown user": changed(utterances, 3, user_id="nobody"),
        "another prompt": changed(utterances, 1, user_prompt="else"),
        "half a surrogate": changed(utterances, 1, model_response="\ud800"),
    }  # fmt: skip
    for name, content in bad_utterances.items():
        yield Case(f"utterances.jsonl: {name}", spoilt_prism("utterances.jsonl", writes(content)), "utterances.jsonl:")
    bad_survey = {
        "no user_id": without(survey, 0, "user_id"),
        "no location": without(survey, 1, "location"),
        "a user twice": changed(survey, 1, user_id="p0"),
        "location is text": changed(survey, 1, location="Chile"),
        "no country": changed(survey, 1, location={}),
        "country is a number": changed(survey, 1, location={"reside_country": 7}),
        "country is a list": changed(survey, 1, location={"reside_country": ["Chile"]}),
        "country is half a surrogate": changed(survey, 1, location={"reside_country": "\udfff"}),
        "user_id is a number": changed(survey, 1, user_id=3),
    }  # fmt: skip
    for name, content in bad_survey.items():
        yield Case(f"survey.jsonl: {name}", spoilt_prism("survey.jsonl", writes(content)), "survey.jsonl")


def opinion(**fields) -> bytes:
    """A csv of two questions, the second with other fields."""
    rows = [whole.OPINION, whole.OPINION | {"question": "And this?"} | fields]
    cells = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
    return "\n".join([",".join(whole.OPINION), *cells, ""]).encode()


OPINIONS = {
    "selections is a list": opinion(selections="[0.5, 0.5]"),
    "selections is code": opinion(selections="__import__('os').system('true')"),
    "selections is a call": opinion(selections="dict(a=[1])"),
    "selections is cut off": opinion(selections="{'Chile': [0.5,"),
    "selections is empty": opinion(selections=""),
    "an unhashable country": opinion(selections="{['Chile']: [0.5, 0.5]}"),
    "a country that is a number": opinion(selections="{7: [0.5, 0.5]}"),
    "shares below 0": opinion(selections="{'Chile': [-0.5, 1.5]}"),
    "shares of nan": opinion(selections="{'Chile': [nan, 0.5]}"),
    "shares of 1e999": opinion(selections="{'Chile': [1e999, 0.5]}"),
    "shares that are words": opinion(selections="{'Chile': ['a', 'b']}"),
    "shares that are true": opinion(selections="{'Chile': [True, False]}"),
    "huge shares": opinion(selections="{'Chile': [1" + "0" * 400 + ", 1]}"),
    "nested selections": opinion(selections="(" * 5000 + ")" * 5000),
    "signs": opinion(selections="-" * 100_000 + "1"),
    "options is an object": opinion(options="{'a': 1}"),
    "options is a word": opinion(options="yes"),
    "a huge hexadecimal option": opinion(options="[0x" + "f" * 6000 + ", 'b']"),
    "an option that is no UTF-8": opinion(options="['\\ud800', 'b']"),
    "no question": opinion(question=" "),
    "a country that is no UTF-8": opinion(selections="{'\\ud800': [0.5, 0.5]}"),
    "latin-1": opinion() + '"é","{}","[]"\n'.encode("latin-1"),
    "no column options": b"question,selections\na,b\n",
    "header only": b"question,selections,options\n",
    "ragged": b"question,selections,options\na,b\n",
    "empty": b"",
}


def of_opinions() -> Iterator[Case]:
    def by_run(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            spoil(place.folder / "q.csv")
            path = f"--config.data.path={place.folder / 'q.csv'}"
            return place.whole.run(place.folder, "--config.data.source=global_opinions", path)

        return make

    def by_evaluate(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            spoil(place.folder / "q.csv")
            own = place.whole.command("evaluate", place.folder, data=place.folder / "q.csv")
            return [*own, "--source=global_opinions"]

        return make

    for name, content in OPINIONS.items():
        yield Case(f"global_opinions: {name}", by_run(writes(content)), "q.csv")
    for name in ("an unhashable country", "huge shares", "a huge hexadecimal option", "empty"):
        yield Case(f"evaluate, global_opinions: {name}", by_evaluate(writes(OPINIONS[name])), "q.csv")
    for name in ("a FIFO", "unreadable", "missing"):
        yield Case(f"evaluate, global_opinions: {name}", by_evaluate(PLACES[name]), "q.csv")
