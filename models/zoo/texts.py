"""Short English texts by chance, in two parts that share none."""

import hashlib

import numpy as np

SPLITS = ("calibration", "evaluation")

_WORD_LIST = """
about above across after again air all almost along also always among animal answer apple
april area around arrive art ask autumn away back ball bank basket beach bear beautiful
because bed before begin behind below best better between big bird black blue board boat body
book both bottle bottom box branch bread break bridge bright bring brother brown build burn
busy butter buy camera candle capital captain carry castle catch cause centre century chain
chair chance change cheap child choose circle city class clean clear climb clock close cloud
coast coat coffee cold colour come common cook copper corner cotton country course cover cross
crowd current dance dark daughter day deep desert different direct doctor door double down
draw dream dress drink drive dry during dust each early earth east easy edge egg eight
electric empty engine enough evening every example eye face factory family famous farm fast
father field figure fill final find finger fire first fish floor flower fly follow foot forest
forget four fresh friend front fruit full game garden gather gentle glass gold good grass
great green ground group grow guide hand happy harbour hard harvest head hear heavy help high
hill history hold holiday home honey horse hospital hour house hundred ice idea inside iron
island jacket january join journey judge jump just keep key kind king kitchen know labour lake
language large last laugh law lead learn leave left letter level library light line listen
little local long machine make many map market matter measure medicine meet message metal
method middle mile milk million mind minute mirror modern moment money month moon morning
mountain mouth move museum music narrow nature near never new night noise north note nothing
number ocean office often old open orange order other over oxygen page paint paper parcel
park part pass pattern peace pencil people piece place plain plant plate please point pocket
police postcard potato pound power present price public pull purple push quarter queen
question quick quiet quite rabbit railway rain reach read ready reason record red remember
repair report rest rice right river road rock room rope round rule sail salt same sand
saturday school science sea season second secret seven shape ship short shoulder side signal
silver simple sister six sky sleep slow small smoke snow soft south space speed spoon spring
square stand star station steel stone storm story strange street strong sugar summer sunday
supper surface table tall teach temple ten theatre thick thin thousand thread three through
ticket together tomorrow tower town trade train travel tree true turn twelve twenty under
until valley village visit voice wait walk wall warm wash watch water weather week weight
west wheel white wide wind window winter without wood wool word work world write yard year
yellow young
"""
WORDS = tuple(_WORD_LIST.split())
MONTHS = ("January", "March", "May", "June", "August", "October", "November", "December")


def part_of(text: str) -> str:
    """Return the part that `text` belongs to, by its hash, so that no two parts share a text."""
    return SPLITS[hashlib.sha256(text.encode()).digest()[0] & 1]


def random_text(rng: np.random.Generator, split: str) -> str:
    """Draw a text of 4 to about 40 characters that belongs to the part `split`."""
    while True:
        text = _KINDS[int(rng.integers(len(_KINDS)))](rng)
        if part_of(text) == split:
            return text


def _words(rng: np.random.Generator, low: int, high: int) -> str:
    count = int(rng.integers(low, high))
    return " ".join(str(word) for word in rng.choice(WORDS, count, replace=False))


def _phrase(rng: np.random.Generator) -> str:
    return _words(rng, 2, 6)


def _sentence(rng: np.random.Generator) -> str:
    first, second = _words(rng, 2, 4), _words(rng, 1, 3)
    mark = str(rng.choice([", ", "; ", ": ", " - "]))
    return first.capitalize() + mark + second + str(rng.choice([".", "!", "?"]))


def _title(rng: np.random.Generator) -> str:
    text = _words(rng, 2, 4)
    return text.upper() if rng.random() < 0.5 else text.title()


def _quote(rng: np.random.Generator) -> str:
    return f'"{_words(rng, 1, 3).capitalize()}" ({_words(rng, 1, 3)})'


def _date(rng: np.random.Generator) -> str:
    day, year = int(rng.integers(1, 29)), int(rng.integers(1780, 2030))
    return f"{day} {rng.choice(MONTHS)} {year}, {rng.integers(24):02}:{rng.integers(60):02}"


def _amount(rng: np.random.Generator) -> str:
    sign = str(rng.choice(["$", "+", "-", ""]))
    return f"{str(rng.choice(WORDS)).title()} {sign}{float(rng.uniform(1, 99999)):,.2f}"


def _code(rng: np.random.Generator) -> str:
    letters = "".join(str(c) for c in rng.choice(list("ABCDEFGHJKLMNPRSTUVWXYZ"), 3))
    return f"No. {letters}-{rng.integers(10000):04}/{rng.integers(100):02}"


def _address(rng: np.random.Generator) -> str:
    name, host = (str(word) for word in rng.choice(WORDS, 2, replace=False))
    return f"{name}.{rng.integers(10, 1000)}@{host}.example"


_KINDS = (_phrase, _phrase, _sentence, _sentence, _title, _quote, _date, _amount, _code, _address)
