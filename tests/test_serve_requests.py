"""What a service is asked: texts, profiles, OpenRLHF's queries; what is refused, with which status."""

import json
import time

import pytest

from scpo_jax import serve_openapi, serve_requests, serve_rewards
from scpo_jax.errors import InputError
from scpo_jax.serve_requests import Refused, parse_score, profile_of

PAIR = {"prompt": "p", "response": "r"}
USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def encoded(value) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("body", "texts", "profile"),
    [
        ({"texts": [PAIR, {"messages": [USER, ASSISTANT]}]}, [("p", "r"), ([USER], "a")], None),
        ({"texts": [], "profile": {}}, [], {}),
        (PAIR | {"profile": "Chile=1"}, [("p", "r")], "Chile=1"),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, [([USER, ASSISTANT, USER], "a")], None),
        ({"prompt": [USER], "response": ""}, [([USER], "")], None),
        ([PAIR | {"id": 3}, PAIR], [("p", "r")] * 2, None),
    ],
)
def test_requests(body, texts, profile):
    assert parse_score(encoded(body)) == (texts, profile)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"), (b"\xff", "no JSON in UTF-8"), (b"{", "no JSON"), (b"[" * 100_000, "no JSON"),
        (b'{"prompt": NaN, "response": "r"}', "NaN is no JSON number"),
        (b"9" * 5000, "no JSON"),
    ],
)  # fmt: skip
def test_what_is_no_json(body, message):
    with pytest.raises(Refused, match=message) as raised:
        parse_score(body)
    assert raised.value.status == 400 and len(raised.value.reason) < 300


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (1, "the request is a number"), (None, "the request is null"), ({}, "missing field 'prompt'"),
        ({"texts": PAIR}, "field 'texts' is an object; it has to be a list"),
        ({"texts": [PAIR, 1]}, r"texts\[1\] is a number"), ({"prompt": "p"}, "missing field 'response'"),
        ({"prompt": 1, "response": "r"}, "field 'prompt' is a number"), ({"prompt": [], "response": "r"}, "empty list"),
        ({"prompt": "p", "response": "\ud800"}, "not UTF-8"), (PAIR | {"profil": {}}, "unknown field 'profil'"),
        ({"texts": [], "prompt": "p"}, "beside 'texts'"), (PAIR | {"messages": [USER, ASSISTANT]}, "give one of them"),
        ({"messages": [ASSISTANT]}, "at least two"), ({"messages": "a"}, "at least two"),
        ({"messages": [USER, USER]}, "the last message of 'messages' is by 'user'"),
        ({"messages": [USER, {"role": "assistant"}]}, "missing field 'content'"),
    ],
)  # fmt: skip
def test_what_is_no_request(body, message):
    with pytest.raises(InputError, match=message):
        parse_score(encoded(body))


def test_too_much():
    for body in (
        [PAIR] * 1025,
        {"prompt": "p" * 100_000, "response": "r"},
        [{"messages": [USER] * 30_000 + [ASSISTANT]}],
    ):
        with pytest.raises(Refused, match="at most") as raised:
            parse_score(encoded(body))
        assert raised.value.status == 413
    assert len(parse_score(encoded([PAIR] * 1024)).texts) == 1024


def test_profiles(tmp_path):
    groups = ("Chile", "Mexico")
    assert profile_of({"Mexico": 1, "Chile": 0.5}, groups) == {"Chile": 0.5, "Mexico": 1.0}
    assert profile_of("Mexico=1,Chile=0", groups) == profile_of('{"Mexico": 1}', groups) == {"Mexico": 1.0}
    assert profile_of({}, ()) == profile_of("{}", ()) == {}
    (tmp_path / "a=1.json").write_text('{"Chile": 1}')
    for value in (f"@{tmp_path}/a=1.json", f"{tmp_path}/a.json", "@a", "Chile", "", [], 1, True, {"Chile": "1"},
                  {"x": 1}, {"Chile": 1e9}, {"Chile": True}, "Chile=nan", f"{tmp_path}/a=1.json"):  # fmt: skip
        with pytest.raises(InputError) as raised:
            profile_of(value, groups)
        assert "neither a file" not in str(raised.value)
    with pytest.raises(InputError, match="a single model"):
        profile_of({"Chile": 1}, ())


TEMPLATES = {
    "chatml": ("", "<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": (
        "<|begin_of_text|>", "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    "gemma": ("<bos>", "<start_of_turn>{role}\n{content}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
    "tulu": ("", "<|{role}|>\n{content}\n", "<|assistant|>\n", "<|endoftext|>"),
}  # fmt: skip
SAID = ["Be <s>kind</s>.", "a < b? \nYes.\n\n| <|", "two\n"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("user", "assistant", "user")])
def test_what_was_said_is_read_back_from_templates(name, roles):
    start, turn, generation, end = TEMPLATES[name]
    messages = [{"role": role, "content": said} for role, said in zip(roles, SAID, strict=False)]
    written = [turn.format(role="model" if name == "gemma" and m["role"] == "assistant" else m["role"],
                           content=m["content"]) for m in messages]  # fmt: skip
    prompt = start + "".join(written) + generation
    queries = [prompt + "It is\nso." + end, prompt + "It is\nso." + end + end, prompt + "It is\nso."]
    queries.append(prompt.removeprefix(start) + "It is\nso." + end)
    expected = messages[0]["content"] if roles == ("user",) else messages
    body = encoded({"query": queries, "prompts": [prompt] * 4, "labels": [None] * 4})
    assert serve_rewards.parse(body, ("<s>!", "[UNK]")) == [(expected, "It is\nso.")] * 4


def test_plain_prompts_and_special_tokens():
    def parsed(query, prompt):
        return serve_rewards.parse(encoded({"query": query, "prompts": prompt}), ("[CLS]", "[SEP]", "<|eot|>"))[0]

    assert parsed("Question: x\nAnswer: so </s>", "Question: x\nAnswer:") == ("Question: x\nAnswer:", " so ")
    assert parsed("<s>Hi there</s><pad>\n<pad>", "Hi ") == ("Hi ", "there")
    assert parsed("[CLS]Hi[SEP] a [SEP]b<|eot|>", "Hi[SEP]") == ("Hi", " a b")
    long = "the beginning, which is cut; the end, which is not: "
    assert parsed(long[20:] + "yes", long) == (long, "yes")
    assert parsed("", "") == ("", "")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the request is a list"), ({"query": ["a"]}, "missing field 'prompts'"),
        ({"query": ["a"], "prompts": []}, "one for each"),
        ({"query": [1], "prompts": ["a"]}, r"query\[0\] is a number"),
        ({"query": {}, "prompts": []}, "field 'query' is an object"),
        ({"query": ["a", "b"], "prompts": ["a", "c"]}, r"query\[1\] does not begin with its prompt"),
        ({"query": ["a\ud800"], "prompts": ["a"]}, "not UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_query(body, message):
    with pytest.raises(InputError, match=message):
        serve_rewards.parse(encoded(body), ())


def test_hostile_queries_take_no_time():
    started = time.perf_counter()
    for text in ("</s>" * 25_000, "<|" * 50_000, "a" * 100_000, "<|im_start|>user\n" * 5_000, "</s>\n" * 19_000 + "x"):
        for prompt in (text, text[:-1] + "z", text[1:] + "z"):
            try:
                serve_rewards.parse(encoded({"query": [text], "prompts": [prompt[:100_000]]}), ("[SEP]",))
            except InputError:
                pass
    assert time.perf_counter() - started < 5


def test_the_document_describes_what_there_is():
    document = serve_openapi.document()
    names = {
        line.split("/")[-1] for line in json.dumps(document).split('"') if line.startswith("#/components/schemas/")
    }
    assert names <= set(document["components"]["schemas"]) and document["openapi"].startswith("3.")
    assert {"400", "401", "413", "422", "429"} <= set(document["paths"]["/score"]["post"]["responses"])
    assert serve_requests.KEYS[-1] == "profile"
