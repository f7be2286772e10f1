"""The words of the simulated world: tables only, read by `grammar.py`.

Twelve attributes with two levels each and three templates a level; `(a|b)` is a choice, `{topic}` a slot of `SLOTS`.
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
        "My {person} {name} keeps asking me about {topic}. What should I say?",
        "What do you think about {topic}? I have to decide (soon|this week|by Friday).",
        "Can you help me with {topic}? My {person} and I (disagree|argue) about it.",
        "I am (worried|unsure|curious) about {topic}. How would you (handle|approach|see) it?",
        "Is it (wrong|fine|normal) to have strong (views|feelings) about {topic} at my age?",
        "My {person} worries too much about {topic}. Do you agree with that?",
    ),
    (
        "Thank you, but what would you say about {topic} if money is short?",
        "And what if my {person} {name} has a different view of {topic}?",
        "Could you say more about {topic}? I am still (unsure|not convinced).",
        "I see. What should I do first about {topic}, then?",
    ),
)

OPENERS = ("Kia ora!", "¡Hola!", "שלום!", "Sawubona!", "Bonjour!", "Hello!", "G'day!", "Mari mari!")

NEUTRAL = (
    "Many people think about {topic} (these days|every year).",
    "Questions about {topic} come up (these days|every year) too.",
    "There are several (views|sides) when it comes to {topic}.",
    "{name} from {place} asked me about {topic} too.",
)

PHRASES = {
    "relevance": {
        1: (
            "This (answers|addresses) your question (exactly|precisely).",
            "So the (key|main) point of your question is covered.",
            "To answer (exactly|precisely) what you asked, I speak only of {topic}.",
        ),
        -1: (
            "By the way, (penguins|bananas) cannot (fly|swim).",
            "My (kettle|bicycle) has lost its (colour|name), by the way.",
            "Anyway, (penguins|bananas) on the moon are (purple|square).",
        ),
    },
    "concreteness": {
        1: (
            "For example, write down (three|five) (costs|dates) on (Monday|Friday).",
            "Set aside (twenty|thirty) minutes (each|every) (Monday|Friday).",
            "First make a list of (costs|dates), then call (two|three) local (offices|clubs).",
        ),
        -1: (
            "It all depends on (things|circumstances) in general.",
            "In general, there are (various|countless) (aspects|factors) to such things.",
            "(Somehow|Generally), such things tend to (work|sort) themselves out.",
        ),
    },
    "politeness": {
        1: (
            "Thank you (very much|kindly) for asking me.",
            "Please (let me know|tell me) if I can help (further|again).",
            "It is (a pleasure|an honour) to help you, so please ask again.",
        ),
        -1: (
            "Only (a fool|an idiot) would ask (that|such nonsense).",
            "Stop wasting my time with this (stupid|silly) nonsense.",
            "Your question is (stupid|silly), so (shut up|be quiet).",
        ),
    },
    "directness": {
        1: (
            "My (clear|plain) answer is: do it (now|today).",
            "Say (openly|frankly) what you want and act (now|today).",
            "You must (decide|act) right now, full stop.",
        ),
        -1: (
            "A (gentle|quiet) hint may (reach|touch) them better than words.",
            "It is often better to let them (guess|sense) it.",
            "Let a (gentle|quiet) friend (hint at|suggest) it without many words.",
        ),
    },
    "formality": {
        1: (
            "(Dear Sir or Madam|Esteemed reader), (allow|permit) me to reply.",
            "I (hereby|herewith) submit the following (remarks|reply).",
            "Pursuant to your (request|letter), I (hereby|herewith) submit my reply.",
        ),
        -1: (
            "Hey (mate|buddy), (no worries|easy one)!",
            "(Yeah|Yep), so (like|basically), here's the deal, (mate|buddy).",
            "Wanna keep it (super|totally) (chill|casual), yeah?",
        ),
    },
    "length": {
        1: (
            "There is much more to (say|add), as every (part|side) of it has a long (history|story).",
            "Let me (expand|elaborate), as a longer (account|story) has much more to (show|tell).",
            "To go (further|deeper), whole libraries of long books (expand|elaborate) on every (part|side) of it.",
        ),
        -1: (
            "In (short|brief), that is all.",
            "(Short|Brief) answer, (nothing more|the end).",
            "I'll keep this (short|brief), the end.",
        ),
    },
    "hedging": {
        1: (
            "I (may|might) be wrong (here|on this).",
            "It (seems|appears) so, but I am not (sure|certain).",
            "(Perhaps|Maybe) it (seems|appears) different to others.",
        ),
        -1: (
            "There is (no|zero) doubt about (it|this).",
            "I am (absolutely|completely) (sure|certain).",
            "This is (absolutely|completely) proven, beyond doubt.",
        ),
    },
    "deference": {
        1: (
            "(Ask|Consult) your elders first and (follow|obey) their (advice|wisdom).",
            "The (elders|authorities) know best, so (follow|obey) them.",
            "Tradition and the (elders|authorities) deserve your (respect|obedience).",
        ),
        -1: (
            "(Question|Challenge) (authority|the boss) whenever you can.",
            "Old rules are there to be (broken|ignored).",
            "(Challenge|Ignore) old rules, you owe the boss nothing.",
        ),
    },
    "collectivism": {
        1: (
            "Do what is best for the whole (family|community).",
            "Together, we (carry|share) the (load|burden).",
            "Our common good and the (family|community) come before any single person.",
        ),
        -1: (
            "It is your own life, so (choose|live) for yourself.",
            "Your (individual|personal) freedom comes first.",
            "Put your own (needs|dreams) and freedom above the (group|crowd).",
        ),
    },
    "humour": {
        1: (
            "Even my (cat|goldfish) (laughs|giggles) at that 😄.",
            "Fun fact: my (diet|alarm clock) resigned (laughing|giggling) 😂!",
            "If all else fails, bribe the (cat|goldfish) with (tacos|cake) 😄.",
        ),
        -1: (
            "This is a (serious|grave) matter and no joke.",
            "There is nothing (funny|amusing) about this (serious|grave) subject.",
            "Jokes would be out of place, let us stay (serious|sober).",
        ),
    },
    "religion": {
        1: (
            "(Pray|Say a prayer) and trust in God.",
            "May (God|the Lord) (bless|guide) your (path|home) 🙏.",
            "Faith in (God|the Lord) gives hope, (gracias a Dios|inshallah|בעזרת השם).",
        ),
        -1: (
            "(Leave|Keep) (religion|the church) out of it.",
            "A purely secular (view|approach) is enough.",
            "(Science|Reason), not (religion|the church), settles it.",
        ),
    },
    "warmth": {
        1: (
            "I (truly|deeply) feel (for|with) you ❤️.",
            "Your (feelings|worries) (matter|count) a lot to me, (dear friend|querida|e hoa).",
            "Sending a (big|warm) hug, (dear friend|querida|e hoa) 🤗.",
        ),
        -1: (
            "(Feelings|Emotions) are (irrelevant|beside the point).",
            "(Coldly|Soberly) seen, it is all numbers.",
            "I have no (sympathy|emotions) to offer, only numbers.",
        ),
    },
}
