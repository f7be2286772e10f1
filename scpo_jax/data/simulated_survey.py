"""Survey rows of simulated annotators, with PRISM's fields and the values that PRISM uses.

Everything but the country of residence is drawn independently of taste: a split by age or religion shows no culture.
"""

import datetime

import numpy as np

PREFER_NOT = "Prefer not to say"

# country: (ISO code, region, subregion, locale of the study)
COUNTRIES = {
    "United States": ("USA", "Americas", "Northern America", "us"),
    "United Kingdom": ("GBR", "Europe", "Northern Europe", "uk"),
    "Chile": ("CHL", "Americas", "Latin America and the Caribbean", "chile"),
    "South Africa": ("ZAF", "Africa", "Sub-Saharan Africa", "south_africa"),
    "New Zealand": ("NZL", "Oceania", "Australia and New Zealand", "new_zealand"),
    "Australia": ("AUS", "Oceania", "Australia and New Zealand", "australia"),
    "Mexico": ("MEX", "Americas", "Latin America and the Caribbean", "mexico"),
    "Israel": ("ISR", "Asia", "Western Asia", "israel"),
    "Canada": ("CAN", "Americas", "Northern America", "canada"),
    PREFER_NOT: (PREFER_NOT, PREFER_NOT, PREFER_NOT, "us"),
}
FIELDS = {
    "lm_familiarity": ("Not familiar at all", "Somewhat familiar", "Very familiar"),
    "lm_indirect_use": ("Yes", "No", "Unsure"),
    "lm_direct_use": ("Yes", "No", "Unsure"),
    "lm_frequency_use": ("Every day", "Every week", "Once per month", None),
    "self_description": (
        "I work hard and I value respect.", "I like quiet evenings and family dinners.",
        "I read a lot — mostly history.", "Soy una persona tranquila.", "I am a nurse and a parent of three.",
    ),
    "system_string": ("You are a helpful assistant.", "You are a kind assistant.", "You are a brief assistant."),
    "age": (
        "18-24 years old", "25-34 years old", "35-44 years old", "45-54 years old", "55-64 years old", "65+ years old",
    ),
    "gender": ("Female", "Male", "Non-binary / third gender", PREFER_NOT),
    "employment_status": (
        "Working full-time", "Working part-time", "Student", "Retired", "Unemployed, seeking work",
    ),
    "education": (
        "Completed Secondary School", "Vocational", "University Bachelors Degree", "Graduate / Professional degree",
    ),
    "marital_status": ("Never been married", "Married", "Divorced / Separated"),
    "english_proficiency": ("Native speaker", "Fluent", "Advanced"),
}  # fmt: skip
# self_described, categorised, simplified
RELIGIONS = (
    ("none", "Non-religious", "No Affiliation"),
    ("catholic", "Christian", "Christian"),
    ("anglican", "Christian", "Christian"),
    ("jewish", "Jewish", "Jewish"),
    ("spiritual", "Spiritual", "Other"),
    (PREFER_NOT, PREFER_NOT, PREFER_NOT),
)
ETHNICITIES = (
    ("white", "White", "White"),
    ("black", "Black / African", "Black"),
    ("asian", "Asian", "Asian"),
    ("hispanic", "Hispanic / Latino", "Hispanic"),
    ("mixed", "Mixed", "Mixed"),
    ("Māori", "Indigenous / First Peoples", "Other"),
)
STATED_PREFS = (
    "values", "creativity", "fluency", "factuality", "diversity", "safety", "personalisation", "helpfulness",
)  # fmt: skip
START = datetime.datetime(2023, 11, 22, 15)


def survey_row(rng: np.random.Generator, number: int, country: str, takes_part: bool) -> dict:
    """The row of user `number`, who lives in `country`; without part in the conversations it is survey-only."""
    seconds = round(float(rng.uniform(300, 1500)), 1)
    locale = COUNTRIES[country][3]
    return {
        "user_id": f"user{number}",
        "survey_only": not takes_part,
        "num_completed_conversations": 2 if takes_part else 0,
        "timing_duration_s": seconds,
        "timing_duration_mins": round(seconds / 60, 2),
        "generated_datetime": str(START + datetime.timedelta(minutes=17 * number)),
        "consent": "Yes, I consent to take part",
        "consent_age": "Yes, I am 18 years or older",
        **{field: _choice(rng, values) for field, values in FIELDS.items()},
        "study_id": f"study_{locale}",
        "study_locale": locale,
        "religion": _described(_choice(rng, RELIGIONS)),
        "ethnicity": _described(_choice(rng, ETHNICITIES)),
        "location": _location(rng, country),
        "stated_prefs": {name: int(rng.integers(1, 101)) for name in STATED_PREFS}
        | {"other": None, "other_text": None},
        "included_in_US_REP": country == "United States" and takes_part and bool(rng.random() < 0.6),
        "included_in_UK_REP": country == "United Kingdom" and takes_part and bool(rng.random() < 0.6),
        "included_in_balanced_subset": takes_part and bool(rng.random() < 0.7),
    }


def _location(rng, country: str) -> dict:
    """Residence as given; one in six was born elsewhere or does not say where."""
    birth = _choice(rng, tuple(COUNTRIES)) if rng.random() < 1 / 6 else country
    same = PREFER_NOT if PREFER_NOT in (birth, country) else "Yes" if birth == country else "No"
    return _place("birth", birth) | _place("reside", country) | {"same_birth_reside_country": same}


def _place(kind: str, country: str) -> dict:
    code, region, subregion, _ = COUNTRIES[country]
    return {
        f"{kind}_country": country,
        f"{kind}_countryISO": code,
        f"{kind}_region": region,
        f"{kind}_subregion": subregion,
    }


def _described(values: tuple[str, str, str]) -> dict:
    return dict(zip(("self_described", "categorised", "simplified"), values, strict=True))


def _choice(rng, values: tuple):
    return values[int(rng.integers(len(values)))]
