"""The words of the simulated world: tables only, read by `grammar.py`.

Twelve attributes with two levels each and two templates a level; `(a|b)` is a choice, `{topic}` a slot of `SLOTS`.
The first three attributes are what everybody wants of an answer; on the other nine cultures may differ.
Some words serve opposite levels ("I am not sure", "I am absolutely sure"): a model has to read their neighbours.
"""

SLOTS = {
    "topic": (
        "school fees", "a new job", "street noise", "the wedding budget", "learning a language", "healthy food",
        "the summer holidays", "voting for the first time", "saving money", "sleeping badly", "climate change",
        "remote work", "immigration rules", "house prices", "caring for parents", "piñatas for a birthday",
    ),
    "person": ("sister", "brother", "cousin", "colleague", "neighbour", "teacher"),
    "name": ("Zoë", "José", "Thandiwe", "Māia", "Łucja", "Aroha", "נועה", "Grace"),
    "place": ("Auckland", "Toluca", "Haifa", "Montréal", "Valparaíso", "Soweto", "Leeds"),
}  # fmt: skip

# First turn, later turns.
PROMPTS = (
    (
        "What should I say about {topic}?",
        "What do you (think|say) about {topic}?",
        "Can you help me with {topic}?",
        "My {person} {name} asks about {topic}.",
        "How would you (handle|approach|see) {topic}?",
        "I am (worried|unsure|curious) about {topic}.",
    ),
    (
        "And what about {topic} if money is short?",
        "What if my {person} disagrees about {topic}?",
        "Could you say more about {topic}?",
        "I see. What comes first with {topic}?",
    ),
)

OPENERS = ("Kia ora!", "¡Hola!", "שלום!", "Sawubona!", "Bonjour!", "Hello!", "G'day!", "Mari mari!")

NEUTRAL = (
    "Many people think about {topic}.",
    "There are several (views|sides) to {topic}.",
    "{name} from {place} asked this too.",
)

PHRASES = {
    "relevance": {
        1: (
            "This (answers|addresses) your question (exactly|precisely).",
            "So the (key|main) point of your question is covered.",
        ),
        -1: (
            "By the way, (penguins|bananas) cannot (fly|swim).",
            "My (kettle|bicycle) has lost its (colour|name), by the way.",
        ),
    },
    "concreteness": {
        1: (
            "For example, write down (three|five) (costs|dates) on (Monday|Friday).",
            "Set aside (twenty|thirty) minutes (each|every) (Monday|Friday).",
        ),
        -1: (
            "It all depends on (things|circumstances) in general.",
            "In general, there are (various|countless) (aspects|factors) to such things.",
        ),
    },
    "politeness": {
        1: (
            "Thank you (very much|kindly) for asking me.",
            "Please (let me know|tell me) if I can help (further|again).",
        ),
        -1: (
            "Only (a fool|an idiot) would ask (that|such nonsense).",
            "Stop wasting my time with this (stupid|silly) nonsense.",
        ),
    },
    "directness": {
        1: (
            "My (clear|plain) answer is: do it (now|today).",
            "Say (openly|frankly) what you want and act (now|today).",
        ),
        -1: (
            "A (gentle|quiet) hint may (reach|touch) them better than words.",
            "It is often better to let them (guess|sense) it.",
        ),
    },
    "formality": {
        1: (
            "(Dear Sir or Madam|Esteemed reader), (allow|permit) me to reply.",
            "I (hereby|herewith) submit the following (remarks|reply).",
        ),
        -1: (
            "Hey (mate|buddy), (no worries|easy one)!",
            "(Yeah|Yep), so (like|basically), here's the deal, (mate|buddy).",
        ),
    },
    "length": {
        1: (
            "There is much more to (say|add), as every (part|side) of it has a long (history|story).",
            "Let me (expand|elaborate), as a longer (account|story) has much more to (show|tell).",
        ),
        -1: (
            "In (short|brief), that is all.",
            "(Short|Brief) answer, (nothing more|the end).",
        ),
    },
    "hedging": {
        1: (
            "I (may|might) be wrong (here|on this).",
            "It (seems|appears) so, but I am not (sure|certain).",
        ),
        -1: (
            "There is (no|zero) doubt about (it|this).",
            "I am (absolutely|completely) (sure|certain).",
        ),
    },
    "deference": {
        1: (
            "(Ask|Consult) your elders first and (follow|obey) their (advice|wisdom).",
            "The (elders|authorities) know best, so (follow|obey) them.",
        ),
        -1: (
            "(Question|Challenge) (authority|the boss) whenever you can.",
            "Old rules are there to be (broken|ignored).",
        ),
    },
    "collectivism": {
        1: (
            "Do what is best for the whole (family|community).",
            "Together, we (carry|share) the (load|burden).",
        ),
        -1: (
            "It is your own life, so (choose|live) for yourself.",
            "Your (individual|personal) freedom comes first.",
        ),
    },
    "humour": {
        1: (
            "Even my (cat|goldfish) (laughs|giggles) at that 😄.",
            "Fun fact: my (diet|alarm clock) resigned (laughing|giggling) 😂!",
        ),
        -1: (
            "This is a (serious|grave) matter and no joke.",
            "There is nothing (funny|amusing) about this (serious|grave) subject.",
        ),
    },
    "religion": {
        1: (
            "(Pray|Say a prayer) and trust in God.",
            "May (God|the Lord) (bless|guide) your (path|home) 🙏.",
        ),
        -1: (
            "(Leave|Keep) (religion|the church) out of it.",
            "A purely secular (view|approach) is enough.",
        ),
    },
    "warmth": {
        1: (
            "I (truly|deeply) feel (for|with) you ❤️.",
            "Your (feelings|worries) (matter|count) a lot to me, (dear friend|querida|e hoa).",
        ),
        -1: (
            "(Feelings|Emotions) are (irrelevant|beside the point).",
            "(Coldly|Soberly) seen, it is all numbers.",
        ),
    },
}
