"""Which answer options of a survey say nothing on the matter: no answer at all, or one that was not offered."""

import re

# Answers that interviewers note only if they are volunteered: "Both (VOL)", "Other (DO NOT READ)".
VOLUNTEERED = re.compile(r"\( *vol\b|volunteered|do not read", re.IGNORECASE)

# Codes for a missing answer: "Missing; Not available", "INAP: No internet/no social media".
MISSING = re.compile(r"(other )?missing *(?:;|$)|inap\b|don['’]t -\d|total +n *=", re.IGNORECASE)

# Ways not to answer, alone or joined ("DK/Refused"): as a part of a longer option they may be an answer after all
# ("No, I do not know anyone").
NO_ANSWER = re.compile(
    r"""(?: \b (?: dk | d\.k\. | n/?a | nr
          | (?:i\ )?(?:don['’]t|do\ not)\ know | unsure | not\ sure | undecided | hard\ to\ say | difficult\ to\ say
          | (?:can['’]t|cannot|can\ not)\ (?:say|choose|rate) | never\ heard\ of(?:\ (?:him|her|it|them|this))?
          | haven['’]t\ heard\ enough | no\ (?:answer|opinion|response|reply) | refused?(?:\ to\ answer)? | refusal
          | declined?(?:\ to\ answer)? | prefer\ not\ to\ (?:say|answer) | not\ (?:asked|applicable|available|stated)
        )
        (?: \s* (?: [/,;.()\-] | \bor\b | \band\b ) \s* )*
        )+""",
    re.IGNORECASE | re.VERBOSE,
)


def without_substance(option: str) -> bool:
    """Whether an option is to be left out before shares are compared."""
    option = " ".join(option.split())
    return bool(VOLUNTEERED.search(option) or MISSING.match(option) or NO_ANSWER.fullmatch(option) or not option)
