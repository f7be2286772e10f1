"""The OpenAPI document of a service."""

from scpo_jax import __version__
from scpo_jax.serve_requests import BODY_BYTES, CHARACTERS, TEXTS
from scpo_jax.steering import LARGEST

STRING, NUMBERS = {"type": "string"}, {"type": "array", "items": {"type": "number"}}
STRINGS = {"type": "array", "items": STRING, "maxItems": TEXTS}
REASONS = {
    400: "the body is no JSON",
    401: "the token is missing or wrong",
    408: "the body came too slowly",
    413: f"more than {BODY_BYTES} bytes, {TEXTS} texts or {CHARACTERS} characters a text",
    422: "the JSON is not what the route takes, or the profile names no group of the model",
    429: "too many texts wait: try again later",
}


def document() -> dict:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "scpo serve", "version": __version__, "description": "Scores of texts, by steering profile"},
        "security": [{}, {"bearer": []}, {"basic": []}],
        "paths": {
            "/score": {"post": _post("Scores of texts", "ScoreRequest", "ScoreReply")},
            "/get_reward": {"post": _post("Remote rewards for OpenRLHF", "RewardRequest", "RewardReply")},
            "/healthz": {"get": _get("Whether it is ready", "Health") | {"security": [{}]}},
            "/profiles": {"get": _get("Groups that profiles can name, and profiles that are at hand", "Profiles")},
            "/metrics": {"get": _get("Counts for Prometheus", None)},
            "/openapi.json": {"get": _get("This document", None)},
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "any name, the token as password"},
            },
        },
    }


def _object(required: str = "", **properties) -> dict:
    return {"type": "object", "properties": properties, "required": required.split()}


def _ref(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> dict:
    return {"type": "array", "items": _ref(name), "maxItems": TEXTS}


PROFILE_IN_QUERY = {
    "name": "profile", "in": "query", "required": False, "schema": STRING,
    "description": "where the body names none: as for --profile, but no file; default that of the service",
}  # fmt: skip
STRENGTHS = {
    "type": "object",
    "additionalProperties": {"type": "number", "minimum": -LARGEST, "maximum": LARGEST},
    "examples": [{"Chile": 0.7, "Mexico": 0.3}, {}],
}
SCHEMAS = {
    "Strengths": STRENGTHS,
    "Profile": {"oneOf": [_ref("Strengths"), STRING | {"examples": ["Chile=0.7,Mexico=0.3"]}]},
    "Message": _object("role content", role=STRING, content=STRING),
    "Pair": _object(
        "prompt response",
        prompt={"oneOf": [STRING, {"type": "array", "items": _ref("Message"), "minItems": 1}]},
        response=STRING,
    ),
    "Conversation": _object(
        "messages",
        messages={
            "type": "array", "items": _ref("Message"), "minItems": 2, "description": "the last is by the assistant",
        },
    ),  # fmt: skip
    "Text": {"oneOf": [_ref("Pair"), _ref("Conversation")]},
    "WithProfile": _object(profile=_ref("Profile")),
    "ScoreRequest": {
        "oneOf": [
            _object("texts", texts=_list("Text"), profile=_ref("Profile")),
            {"allOf": [_ref("Text"), _ref("WithProfile")]},
            _list("Text"),
        ]
    },
    "ScoreReply": _object("scores profile", scores=NUMBERS, profile=_ref("Strengths")),
    "RewardRequest": _object("query prompts", query=STRINGS, prompts=STRINGS, labels={"type": "array", "items": {}}),
    "RewardReply": _object(
        "rewards scores extra_logs",
        rewards=NUMBERS, scores=NUMBERS, extra_logs=_object("reward_model_score", reward_model_score=NUMBERS),
    ),
    "Health": _object("status", status={"enum": ["ready", "warming up"]}),
    "Profiles": _object(
        "groups default cached capacity",
        groups={"type": "array", "items": STRING},
        default=_ref("Strengths"),
        cached={"type": "array", "items": _ref("Strengths")},
        capacity={"type": "integer"},
    ),
    "Error": _object("error", error=STRING),
}  # fmt: skip


def _content(name: str) -> dict:
    return {"content": {"application/json": {"schema": _ref(name)}}}


def _post(summary: str, request: str, reply: str) -> dict:
    errors = {str(status): {"description": reason} | _content("Error") for status, reason in REASONS.items()}
    return {
        "summary": summary,
        "parameters": [PROFILE_IN_QUERY],
        "requestBody": {"required": True} | _content(request),
        "responses": {"200": {"description": "scores in the order of the texts"} | _content(reply)} | errors,
    }


def _get(summary: str, reply: str | None) -> dict:
    return {"summary": summary, "responses": {"200": {"description": summary} | (_content(reply) if reply else {})}}
