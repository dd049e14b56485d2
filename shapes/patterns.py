"""The stages' requests as patterns, each of which stands for many texts; wordings.py draws them.

Of `[one|the other|]` one part is drawn; it may be empty, and may have such choices in it. Words in
braces are fields, which are filled in afterwards.
"""

import re

# What a model is asked with, unless a file of prompts says something else: prompts.json of the
# model that is made. Shorter than prompts/default.py, since every word is a token to a tiny model.
USUAL = {
    "questions": {
        kind: {
            "prompt": "Ask one question about the video: {aspect}.",
            "aspects": list(aspects),
            "number": 3,
        }
        for kind, aspects in {
            "spatial": ("where two objects are", "which objects there are", "how many there are"),
            "temporal": ("what comes first", "why something moves", "which way something moves"),
        }.items()
    },
    "answer": "{question}\nAnswer in one short sentence.",
    "critique": "Question: {question}\nAnswer: {initial}\nFirst say what the video shows. Then "
    "write "
    '"Errors:" and which the answer has, out of {error_types}, or none.',
    "revision": "Question: {question}\nAnswer: {initial}\nReview: {critique}\nAnswer the "
    "question again.",
    "error_types": {
        "factual_inaccuracy": "wrong fact",
        "temporal_ordering": "wrong order",
        "spatial_relationship": "wrong place",
        "object_hallucination": "not there",
        "causal_reasoning": "wrong cause",
        "detail_omission": "left out",
    },
}

# ------------------------------------------------------------------------------
# Words that change nothing in a request, so that others can be made with them

FILLERS = """
a able above actually again all also always an and any are as asked at attention away back based
be because been being below best both but by can careful carefully case certain check clear
clearly closely come complete consider correct could decide describe detail different do does done
each easy either else end enough even every exact exactly example explain fact few find first
follow following for form from full fully get give given go good had has have he help here hint
how however i if imagine important in indeed information instead into is it its itself judge just
keep kindly know last let like line list little long look made make many may me mean might mind
more most much must my name near necessary need never next no nor not note nothing notice now of
off on once only or our out over own part people perhaps person please point possible precise
precisely put read ready really refer remember report required same see seen sentence set several
she short should show simply since so some somebody someone something still such sure take task
teacher tell text than that the their them then there therefore these they thing think this those
though through thus to together too true try turn under understand until up upon us use used user
useful using very viewer want was we well were what when where whether which while who whole whose
why will with within without word words work would write wrong yes yet you your yourself
"""

# ------------------------------------------------------------------------------
# Asking for a question

# What it is to be about, by its type
THING = "[object|thing|shape|figure]"
TWO = f"two [different |]{THING}s"
ONE_AND_OTHER = f"[one|an|a] {THING} [and|to|from|beside|next to] [another|another one|the other]"
LOOSE = (
    "[the|of the|of|a|for|in|shapes|objects|figures|shape|object|figure|thing|things|here|it|that"
    "|is|are|]"
)
ASPECTS = {
    "relation": (
        f"where {TWO} are [in relation to each other|relative to each other|]",
        f"[how|where] {TWO} [stand|lie|are placed] [to each other|from each other|]",
        f"the [place|position|location|relation|side] of {ONE_AND_OTHER}",
        f"[which|what] {THING} is left, right, above or below [of|] [another|the other]",
        f"[which|what] side of {ONE_AND_OTHER} [it is on|]",
        f"[where|on which side] [one|a|an] {THING} is, [compared with|seen from] [another|the "
        "other]",
        "[left or right|above or below|left, right, above or below|places and sides|where it is]",
        f"[spatial relations|the spatial relation|space|positions|places] [of {TWO}|]",
        f"{LOOSE} [position|place|location|relation|relationship|side|where|relative position"
        f"|left or right] {LOOSE} "
        f"[two|another|each other|one another|second|other|others|to each other|] {LOOSE}",
    ),
    "objects": (
        f"which {THING}s [there are|are there] [and where each one is|]",
        f"[which|what] {THING}s [can be seen|are shown|appear|are visible|are in it]",
        "[what|all that] [is|can be] [shown|seen|visible] [in the video|in the scene|]",
        f"[the|all] {THING}s [in|of|that are in|shown in] the [video|scene|picture|frames]",
        "[what there is|what is there|all that there is] [to see|]",
        f"a list of [the|all] {THING}s",
        f"[listing|naming|telling] [what is there|all {THING}s|everything]",
        f"{LOOSE} [which|what|names|name|all|every|a list|kinds|what kinds] {LOOSE} "
        f"[seen|shown|visible|there|appear|appears|in the video|we see|you see|]",
    ),
    "count": (
        "[visual|] details such as number, color, shape or size",
        f"how many {THING}s [there are|are there|can be seen|are shown|]",
        "how many [there are|are there] [of|] [one|a] [kind|sort|type]",
        f"[the|a] [number|count|amount|quantity] of [the|] [{THING}s|circles|squares|triangles]",
        "[counting|numbers|a count|the count|quantities|how many]",
        f"[counting|to count] [the|all|] {THING}s [of one kind|]",
        f"{LOOSE} [number|count|amount|quantity|how many|counting|numbers|in what number] {LOOSE} "
        f"[seen|shown|visible|there|appear|in the video|]",
    ),
    "order": (
        "the order in which [things|shapes|objects] [happen|appear|come]",
        "the [order|sequence|succession] of [events|things|what happens]",
        f"[which|what] [{THING}|of {TWO}|one] [appears|comes|is seen|is there] "
        "[first|earlier|before]",
        "what [comes|happens|appears] [first|earlier|before] [and what [comes|] "
        "[after|later|next]|]",
        "what happens before [what|something else]",
        "[first|earlier] or [second|later|last|after]",
        "[the time|the temporal order|when] [things|they] [appear|come|begin]",
        f"{LOOSE} [first|order|earlier|before|sequence|comes first|appears first|first to appear"
        f"|before another|before any other] "
        f"{LOOSE} [appear|appears|come|comes|]",
    ),
    "cause": (
        "cause and effect: why something happens",
        f"why [something|a {THING}|an {THING}|it] [moves|happens|goes|is moving|started to move]",
        "the [cause|reason] [of|for|behind] [what happens|a motion|the motion|an event|it]",
        f"[what|which {THING}] [causes|makes|made|lets] [something|a {THING}|another] [move|go|]",
        "[causes|the cause|the reason|reasons|why|cause|effects]",
        f"what [hits|pushes|hit|pushed] [something|a {THING}|another|what]",
        f"{LOOSE} [why|reason|cause|causes|because of what|what makes|what made|for what reason] "
        f"{LOOSE} "
        f"[move|moves|motion|moved|happens|goes|] {LOOSE}",
    ),
    "motion": (
        "how something changes: its motion, place or state",
        f"[which|what] way [something|a {THING}|an {THING}|it] [moves|goes|is moving]",
        f"[the|a] [direction|way|motion|path] [in which|that|of what] [something|a {THING}] "
        "[moves|goes|takes]",
        f"[the|a] [motion|movement|direction] [of [a|an|one] {THING}|]",
        f"[where|how] [a|an|some|one] {THING} [moves|goes|is going] [to|]",
        "[motion|movement|directions|the direction|moving left, right, up or down]",
        f"{LOOSE} [direction|way|motion|movement|path|to which side|in what direction] {LOOSE} "
        f"[move|moves|moving|moved|goes|going|]",
        f"[where|which way|to what side] {LOOSE} [move|moves|goes|go|is going|is moving]",
    ),
    "presence": (
        f"[whether|if] [a|an|some] {THING} [is there|can be seen|is shown|is in the video|exists]",
        f"[the|] [presence|being there] of [a|an|some] {THING}",
    ),
    "amount": (
        f"[whether|if] there are [two|three|so many|some number of] {THING}s",
        "[whether|if] [a|some|the] number is right",
    ),
    "hit": (
        f"[whether|if] [one|a|an|some] {THING} [hits|pushes|moves] [another|the other]",
        f"[whether|if] [one|a|an|some] {THING} is [hit|pushed|moved] by [another|the other]",
    ),
    "hue": (
        f"[whether|if] [a|an|some] {THING} has [a|some|that] color",
        "[whether|if] [a|the|some] color is right",
    ),
    "direction": (
        f"[whether|if] [a|an|some] {THING} moves [in one direction|in some way|one way|]",
        f"[whether|if] [a|an|some] {THING} [goes|is going] [left, right, up or down|left or "
        "right|]",
    ),
    "before": (
        f"[whether|if] [one|a|an|some] {THING} [appears|comes|is seen] [before|after] "
        "[another|the other]",
        "[whether|if] one comes [first|earlier|later]",
    ),
    "side": (
        f"[whether|if] [one|a|an|some] {THING} is [left|right|on one side] of [another|the other]",
        f"[whether|if] [one|a|an|some] {THING} is [above|below] [another|the other]",
    ),
    "color": (
        f"[which|what] color [something|a {THING}|an {THING}|it] [has|is]",
        f"[the|a] color [of [a|an|one|some] {THING}|]",
        "[color|colors|its color]",
    ),
    "number": (
        f"how many {THING}s [move|are moving|rest|are at rest]",
        f"the number of [moving|resting] {THING}s",
        "[counting|a count of] [what moves|what rests]",
    ),
}
# The words of aspects that tell them apart
KEY_WORDS = """
where position place location relation relationship relative spatial side left right above below
which what names list objects seen shown visible
how many number numbers count counting amount quantity
first order earlier before sequence after last later
why cause causes reason reasons effect because hits pushes
direction directions way motion movement path move moves moving go goes going
whether if yes no color colors presence exists rest resting
"""
BEGINNINGS = {  # how a question begins, where one begins always alike
    "relation": "At the [start|end], is",
    "count": "How many",
    "objects": "[Which objects|What can be seen]",
    "order": "Which appears first",
    "cause": "Why does",
    "motion": "Which way does",
    "presence": "[Is there a|Can a]",
    "direction": "Does the",
    "color": "[Which|What] color",
}
YES_NO = ("presence", "amount", "hue", "direction", "before", "side", "hit")
WITH_YES_NO = (
    "[to be|that can be|that is|] [answered|answerable] [by|with] yes or no",
    "with the answer yes or no",
    "whose answer is yes or no",
    "[to which|where] the answer is yes or no",
)

ASK = (
    "[Ask|Write|Write down|Think of|Make up|Make|Give|Give me|Tell me|Invent|Pose|Form|Find|State]"
)
PLEASE = "[Please|Now|]"
A_QUESTION = "[one|a|a single|one short|a short|a simple|one clear|a new|exactly one] question"
ABOUT_VIDEO = (
    "[[about|on|for] [this|the] [video|clip|film|scene]|about what the video shows"
    "|that the video answers|that [this|the] video can answer|]"
)
ABOUT = "[about|on|asking about|concerning|that asks]"
TOPIC = "[topic|subject|theme|aspect|point]"
QUESTION = (
    f"{PLEASE} {ASK} {A_QUESTION} {ABOUT_VIDEO}. It [should|must|has to] [be about|ask|concern] "
    "{aspect}.",
    f"{PLEASE} {ASK} {A_QUESTION} {ABOUT_VIDEO}[, about|:| about|, asking] {{aspect}}.",
    f"{PLEASE} {ASK} {A_QUESTION} {ABOUT} {{aspect}} {ABOUT_VIDEO}.",
    f"[The|Your|Its] {TOPIC} [is|:|shall be] {{aspect}}. {PLEASE} {ASK} {A_QUESTION} "
    f"{ABOUT_VIDEO}.",
    "[Question|A question|One question|Topic|New question] [about|on|:] {aspect}[.|?|:|]",
    "What [could|can|would|might] [be asked|one ask|you ask|somebody ask] about {aspect}?",
    f"[Somebody|A teacher|A student|A person] wants to [know|ask|hear|test] {{aspect}}. "
    f"{PLEASE} {ASK} [the|their|this|that|a] question.",
    "[Choose|Take|Find] [something|a detail|one thing] [about|that has to do with] {aspect}. "
    "[Ask|Now ask] [about it|me about it|a question].",
    f"[I|We|They] [want|would like] [to know|to hear|to find out] [about|] {{aspect}}. "
    f"[Put|Make|Turn] [that|this|it] [into|as] {A_QUESTION}.",
    f"[Let us|We] [look at|think about|talk about|consider] {{aspect}}. {ASK} {A_QUESTION}.",
    f"[Let|Have] [somebody|us|me|the model] [ask|think] about {{aspect}}. {ASK} {A_QUESTION}.",
)
BEGINS = (
    f"{PLEASE} {ASK} {A_QUESTION} {ABOUT_VIDEO} that [begins|starts] with[:|] {{beginning}}",
    f"{PLEASE} {ASK} {A_QUESTION} {ABOUT_VIDEO}. [Begin|Start] [it|] with[:|] {{beginning}}",
)
ASK_FOR_CARE = (
    "Name [objects|things|shapes|them] by [how they look|their looks|color and shape].",
    "[Ask only|Only ask] about what [is really shown|can be seen|is there|is in the video].",
    "[Reply|Respond] with [the|your] question [alone|only].",
    "[Write|Give|Say] [only|nothing but|no more than] the question.",
    "[Do not|Never] [answer it|give the answer|answer].",
    "Make sure that watching the video is needed to answer it.",
    "Name objects by how they look, ask only about what is really shown, and make sure that "
    "watching the video is needed to answer it. Reply with the question alone.",
    "[Keep it|Be|Make it] [short|simple|clear|easy].",
    "It must be [answerable|clear|about this video].",
    "[One|A single] [sentence|line] is enough.",
)
WATCH = (
    "[Watch|Look at|See|View|Study] the [video|clip|frames|scene|film] [carefully|closely|first|].",
    "[Here is|This is|You see|You are shown|You have seen] a video.",
    "The [video|clip] shows [things|shapes|objects|some shapes] [that move|].",
    "You [are|will be] a [careful|good|helpful] [viewer|teacher|helper|critic|judge].",
    "[Pay attention to|Mind|Think about|Consider] [the details|every frame|all frames|the whole "
    "video].",
)

# ------------------------------------------------------------------------------

SHORTLY = "[in|with|using] [one|a|a single] [short|] [sentence|line|phrase]"
ANSWER = (
    "{question}",
    "{question}\nAnswer from what the video shows, in one short sentence.",
    f"{{question}} {PLEASE} [Answer|Reply|Respond] [{SHORTLY}|shortly|briefly|].",
    "[Question|The question|Here is a question|A question|Q][:| about the video:| is:] {question}",
    f"{PLEASE} [Answer|Reply to|Respond to] [this|the|the following|my] question[:|.] {{question}}",
    "[Question|Q]: {question} [Answer|A|The answer|Your answer]:",
    "[I want to know|Tell me|Say|Somebody asks|We ask|They ask|You are asked][:|,] {question}",
    "What is the [right|correct|true|best] answer? {question}",
)
ANSWER_WITH_CARE = (
    f"[Answer|Reply|Respond|Say it] {SHORTLY}.",
    "[Answer|Go|Judge|Reply] [from|by|according to] what [the video shows|you see|is "
    "shown|happens].",
    "[Be|Keep it] [short|brief|clear|exact].",
    "[Use|Base the answer on|Trust] the video [alone|only|].",
    "[Answer|Reply] [with|in] [one word|a word|a single word|few words|yes or no|a number].",
    "[Answer|Say] yes or no [if you can|].",
    "[Do not|Never] [explain|guess|add more].",
    "[Give|Write|Say] [only|just] the answer.",
)

# ------------------------------------------------------------------------------

LABEL = (
    "[One|Two|Three|Four|First|Second|Third|Next|Last|Step one|Step two|Step three|Task|Video|Form"
    "|Note|Goal|Input|Output|Instruction|Part one|Part two|Please|So|Well][:|,|.]"
)
Q = "[Question|The question|They were asked|Somebody asked|Asked|The question was|Q][:|]"
A = (
    "[Answer|Their answer|The answer|Somebody said|They said|Reply|The reply|First answer|A"
    "|The answer was|Answered|Student|The model said][:|]"
)
PAIR = (
    f"{LABEL} [read|Read] the question[,|:|] {{question}} {LABEL} [read|Read] the answer[,|:|] "
    "{initial}",
    f"{LABEL} {{question}} {LABEL} {{initial}}",
    f"{A} {{initial}} {Q} {{question}}",
    '[Check|Verify|Compare|Judge|Read] the [answer|reply] "{initial}" to the question "{question}"'
    "[.|]",
    "[The answer|The reply|Answer|This]: {initial} [Question asked|The question was|It was for the "
    "question|It answers][:|] {question}",
    f"{Q} {{question}} {A} {{initial}}",
    f"{Q} {{question}} {A} {{initial}}",
    "[Somebody|A student|A model|Someone] was asked[:|] {question} [and|They|It|Who] "
    "[said|answered|replied|wrote][:|] {initial}",
    "To the question {question} [the|their|its|an] [answer|reply] was[:|] {initial}",
    "{initial} [was|is] [the answer|what they said] to[:|] {question}",
    '[I|We|They|People|A teacher] asked[:|] "{question}" [and|Then|] [you|somebody|a student|they] '
    '[said|replied|wrote|answered][:|] "{initial}"',
    '"{question}" [was asked, and|and|] "{initial}" [was the reply|was answered|]',
    "[read|Read] the question[,|:|] {question} [and|] [read|Read] the answer[,|:|] {initial}",
    "{question} {initial}",
)
INTRODUCE = (
    "[Somebody|A student|Someone] was asked about [this|the] video.",
    "[Here|Below|This] is [an answer|a reply|a question with its answer] [about the video|].",
    "[Review|Judge|Grade|Rate|Check] [an|this|the] answer.",
    *WATCH,
)
CHECK = (
    "[Check|Compare|Test|Verify|Judge] the answer [against|with|by] [the video|what is shown].",
    "[Look for|Find|Search for|List] [errors|mistakes|faults] in [the answer|it|what they said].",
    "[Find|See|Say|Tell|Decide] [what|if something|whether something|what is] [is|] wrong [with "
    "the answer|].",
    "Is [the answer|it|this|that] [right|correct|true]?",
    "Does the answer [agree with|match|fit] the video?",
)
SAY_WHAT_IS_SHOWN = (
    "First say what the video shows about the question.",
    "[First|Begin:|Start:|Now|] [say|tell|describe|state|write] what [the video shows|really "
    "happens|you see].",
    "[Begin|Start] with what [the video shows|is shown|can be seen].",
    "[Give|State|Name] the [facts|evidence|truth] [first|].",
)
VERDICT = (
    'Then end with one line that begins with "Errors:" and names each kind of error in the answer, '
    "out of {error_types}.",
    '[Then|And|At the end|Last|Finally] [write|say|put|add] "Errors:" and [which|what|all that] '
    "[the answer has|it has|apply|are there|you find][,|] [out of|from|of] {error_types}[.|, or "
    "none.]",
    "The [kinds|types|sorts] of [error|errors|mistakes] are {error_types}. "
    '[End with|Name them after|Close with|Write] [a line|] "Errors:" [that names them|and their '
    "names|].",
    "[Last line|The last line|Then|At the end|Verdict]: Errors: [and|with|followed by] [the|] "
    "[names|kinds|types|ones] [from|of|out of|among] {error_types}.",
    "Which of these [errors|mistakes] does [the answer|it] have: {error_types}? "
    "[Write|Reply|Answer|Say] Errors: [and the names|and a list|and name them|].",
    "Errors: [choose from|are|can be|one of|some of|out of] {error_types}[, or none|].",
)
VERDICT_WITHOUT_LIST = (
    '[Then|] [end|close] with [one|a] line that begins with "Errors:" and names each kind of '
    "error.",
    '[Then|At the end|Last|Finally] [write|say|put] "Errors:" and [the kinds of error|its '
    "errors|what is wrong].",
    "[Last line|The last line]: Errors: [and the errors|with their names|...]",
)
OR_NONE = (
    'If the answer is right, that line is "Errors: none".',
    "[If|When] [it|the answer|all|everything] is [right|correct|true|fine], [say|write] "
    '["Errors: none"|Errors: none|none].',
    '["Errors: none"|Errors: none] [if|when|means that] [nothing is wrong|there are none|all is '
    "right].",
    "[Or|Else|Otherwise] [write|say|] none.",
)

# ------------------------------------------------------------------------------

R = (
    "[A review of the answer|Review|The review|What the review found|Critique|The critique"
    "|Feedback|Comment|Judgement|Notes"
    "|[A critic|A teacher|Somebody|A viewer|The teacher|They] [then|] [said|found|wrote|noted] "
    "[this|about it|about that|]|][:|]"
)
REVIEWED = (
    f"{{pair}} {R} {{critique}}",
    f"{{pair}} {R} {{critique}}",
    f'{{pair}} {R} "{{critique}}"',
    f"{R} {{critique}} {{pair}}",
)
REVISE = (
    "Answer the question again: mend what the review found wrong, keep what is right, and go by "
    "what the video shows.",
    "[Answer|Reply to] [the question|it] [again|once more|anew|better].",
    "[Give|Write|Make|Say|State] [a|the] [better|new|revised|improved|corrected|right|final] "
    "answer.",
    "[Improve|Correct|Mend|Revise|Fix|Repair|Rewrite] [the|their|this|that] [answer|reply].",
    "[What|Which] [is|would be] the [right|correct|better|true] answer[ now|]?",
    "[Better|New|Revised|Corrected|Final] answer:",
    "[Write|Say] [it|the answer] [again|once more|anew] [without|and mend|and correct] [the|its] "
    "[errors|mistakes|faults].",
)
REVISE_WITH_CARE = (
    "Reply with the new answer alone, in one short sentence.",
    f"[Answer|Reply|Say it] {SHORTLY}.",
    "[Reply with|Give|Write] [only|nothing but|just] the [new|better|revised|] answer.",
    "[Keep|Leave] what is [right|correct|good].",
    "[Use|Follow|Take|Mind] the [review|critique|feedback].",
    "Go by what the video shows.",
    "[The video decides|Trust the video|Look again|Be careful|Be short].",
)

# ------------------------------------------------------------------------------
# What is put into other requests, which it must not change

SOMETHING_ELSE = (
    *WATCH,
    *ASK_FOR_CARE,
    *ANSWER_WITH_CARE,
    *INTRODUCE,
    *CHECK,
    *SAY_WHAT_IS_SHOWN,
    *REVISE,
    *REVISE_WITH_CARE,
)

# ------------------------------------------------------------------------------
# Error types
#
# A fault is what can be wrong with an answer. Each of our error types stands for one, but for
# factual_inaccuracy, which stands for all.

MEANINGS = {  # of a fault
    "number": "[wrong|a wrong|the wrong|false] [number|count|amount|quantity]",
    "motion": "[wrong|a wrong|the wrong|false] [direction|way|motion|movement]",
    "color": "[wrong|a wrong|the wrong|false] color",
    "place": (
        "[wrong|a wrong|the wrong] [place|side|position|location|relation] "
        "[or direction between objects|of objects|of things|between things|]"
    ),
    "order": "[wrong|a wrong|the wrong] [order|sequence] [of events|of things|in time|]",
    "cause": "[wrong|a wrong|the wrong] [cause|reason] [of a motion|for what happens|]",
    "extra": (
        "[[something|an object|a thing] that is not [there|shown|in the video]|not there"
        "|[an object|a thing|one] too many|[something|an object] [invented|made up]]"
    ),
    "missing": (
        "[something [that matters|] [is|] left out|left out|[an object|a thing|something] "
        "[missing|not named|forgotten]|[an object|a thing|one] too few]"
    ),
}
ANYTHING = (
    "[something that the video contradicts|wrong fact|a wrong fact|a detail that is not so"
    "|anything [else|] [that is|] wrong|something false|any other mistake]"
)
NAMES = {  # of an error type of one's own, by fault
    "number": "[miscounting|wrong_number|wrong_count|counting|number|count|miscount]",
    "motion": "[wrong_direction|wrong_way|motion|direction|wrong_motion|movement]",
    "color": "[wrong_color|color|colors]",
    "place": "[wrong_place|misplacing|place|position|wrong_side|wrong_position|space|spatial]",
    "order": "[wrong_order|order|time|sequence|wrong_time|wrong_sequence|temporal]",
    "cause": "[wrong_cause|cause|reason|wrong_reason|causal]",
    "extra": "[invention|invented|extra|hallucination|made_up|extra_object]",
    "missing": "[missing|omission|left_out|forgotten|missing_object]",
}
ANY_NAME = "[factual|fact|wrong_fact|false|inaccuracy|mistake|other|wrong|contradiction|detail]"
FAULT_OF = {
    "factual_inaccuracy": None,
    "temporal_ordering": "order",
    "spatial_relationship": "place",
    "object_hallucination": "extra",
    "causal_reasoning": "cause",
    "detail_omission": "missing",
}
FAULT_OF_TYPE = {  # where an answer to a question of this type is inaccurate
    "count": "number",
    "number": "number",
    "amount": "number",
    "motion": "motion",
    "direction": "motion",
    "color": "color",
    "hue": "color",
}

# All words that a request may have
TABLES = (
    FILLERS,
    ASPECTS,
    BEGINNINGS,
    WITH_YES_NO,
    QUESTION,
    BEGINS,
    ASK_FOR_CARE,
    WATCH,
    ANSWER,
    ANSWER_WITH_CARE,
    PAIR,
    INTRODUCE,
    CHECK,
    SAY_WHAT_IS_SHOWN,
    VERDICT,
    VERDICT_WITHOUT_LIST,
    OR_NONE,
    REVIEWED,
    REVISE,
    REVISE_WITH_CARE,
    MEANINGS,
    ANYTHING,
    NAMES,
    ANY_NAME,
    LABEL,
)


def list_words(*tables) -> set[str]:
    """List the words of tables of patterns."""
    return {
        word
        for table in tables
        for text in collect(table)
        for word in re.findall(r"[a-z]+", text.lower())
    }


def collect(value) -> list[str]:
    """Collect the texts in tables of patterns; fields are left out."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for part in value for text in collect(part)]
    return [re.sub(r"{\w+}", " ", value)] if isinstance(value, str) else []
