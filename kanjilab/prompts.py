"""Sets of prompts to draw over and over, so that strips of different runs can be compared."""

from kanjilab.radicals import BY_NUMBER, RADICALS16

RADICALS = tuple(BY_NUMBER[number].meaning for number in RADICALS16)
NEVER_TRAINED = (
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
PROMPT_SETS = {"radicals": RADICALS, "never-trained": NEVER_TRAINED, "part-pairs": PART_PAIRS, "demo": DEMO}
