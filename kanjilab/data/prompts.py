"""Sets of prompts to draw over and over, so that strips of different runs can be compared."""

from kanjilab.data.radicals import BY_NUMBER, RADICALS16

RADICALS = tuple(BY_NUMBER[number].meaning for number in RADICALS16)
# Of the published strips. In left16 "ring", "queen" and "castle" are glosses of training characters; the others
# are not.
PUBLISHED = (
    "axe",
    "ring",
    "queen",
    "crown box",
    "one axe",
    "castle",
    "robot",
    "Nintendo Switch",
    "Gundam",
    "Elon Musk",
    "Pikachu",
    "Pikachu Pikachu",
    "Pikachu Pikachu Pikachu",
    "mountains",
    "Middle-Eastern Uncle who feeds shawarma to local monkeys",
)
PART_PAIRS = (
    "person tree",
    "water woman",
    "fire fish",
    "speech heart",
    "metal insect",
    "hand stone",
    "tree mouth",
    "jewel earth",
)
DEMO = ("fish", "insect", "to swim in a river", "iron", "word", "queen", "robot", "mountains")
PROMPT_SETS = {"radicals": RADICALS, "published": PUBLISHED, "part-pairs": PART_PAIRS, "demo": DEMO}
