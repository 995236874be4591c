"""`builtin:wordmath`: one- and two-step word problems, made on the spot from hand-written templates.

A template is a surface form of an equation skeleton. `{a:12-60}` is a whole number drawn from that range and
used by the skeleton, `{d:3-9}` one that the question does not need; the other fields are words. Labels look
like SVAMP's without the `.0`: `( ( 4 * 17 ) + 3 )`. All templates are our own: nothing is from a data set.

The split is by template, so that dev and test measure new surface forms of skeletons known from train.
"""

import random
import re
from typing import NamedTuple

# A skeleton, then its templates. The place within it decides the split (`split_of`), so add at its end.
_TEXTS = """
( a + b )
- {N} has {a:12-60} {x} and finds {b:5-40} more in a drawer. How many {x} does {he} have now?
- How many {x} do {N} and {M} own altogether if {N} owns {a:14-80} and {M} owns {b:9-60}?
- {N} gave {b:6-30} {x} to {M} and still had {a:10-50} left. How many {x} did {N} have at first?
- On Monday {a:41-120} visitors came to the museum and on Tuesday {b:40-95} came. The museum has {d:3-30}
  rooms. How many visitors came on both days together?
- {M} has {a:15-60} {x}. {N} has {b:5-30} more {x} than {M}, and {d:4-40} {y} as well. How many {x} does {N}
  have?
- After {b:8-40} passengers got off, {a:11-60} were still on the train. How many passengers were on it before
  that?
- A gardener planted {a:12-70} tulips along the fence and {b:10-60} roses by the gate, and then watered
  {d:3-9} trees. How many flowers were planted?
- "I picked {a:10-60} apples," said {N}. "And I picked {b:10-60} in the {d:2-9} hours we were there," said
  {M}. How many apples did they pick in all?
- How many kilometres did {N} drive over the weekend if {he} drove {a:30-190} on Saturday and {b:25-180} on
  Sunday, with {d:3-8} breaks on the way?
- {N}'s grandmother is {b:45-60} years older than {N}, who is {a:6-18} years old. How old is the grandmother?
( a - b )
- {N} had {a:30-90} {x} and gave {b:5-28} of them to {M}. How many {x} does {N} have left?
- There are {a:30-90} {x} and {b:5-28} {y} in a drawer. How many more {x} than {y} are there?
- How many {f} are left on the table if {a:24-80} were baked and {b:5-22} were eaten?
- {N} needs {a:40-95} {x} for a school project. {He} already has {b:8-35} {x} and {d:5-30} {y}. How many more
  {x} does {he} need?
- {N} collected {a:35-90} {x}, while {M} collected {b:6-30} {x} and {d:5-90} {y}. How many fewer {x} did {M}
  collect than {N}?
- {N} is reading a book of {a:150-400} pages that has {d:6-19} chapters. So far {b:20-140} pages have been
  read. How many pages are still to be read?
- A tank held {a:60-200} litres of water. After a leak only {b:10-55} litres were left. How many litres were
  lost?
- The jacket in the window costs {a:60-150} dollars and the scarf costs {b:10-45} dollars. {N} has {d:160-300}
  dollars. How many dollars more does the jacket cost than the scarf?
- {N} now has {a:40-90} {x}. Yesterday {he} bought {b:5-35} of them. How many {x} did {he} have before that?
- "We have {a:50-120} chairs," says {N}. "Only {b:15-45} of them are taken, and {d:6-14} tables are free,"
  says {M}. How many chairs are not taken?
- In a choir of {a:40-90} singers, {b:12-35} are adults and the rest are children. How many children sing in
  the choir?
- There were {b:8-30} ducks on a pond that is {d:2-7} metres deep. Some more ducks came, and now there are
  {a:35-80}. How many ducks came?
- By how many points was {M} behind when {N} had scored {a:50-120} points and {M} had scored {b:12-48}?
- {N} and {M} own {a:40-120} {x} together. If {b:10-38} of these belong to {N}, how many belong to {M}?
- {N} is saving for a bike that costs {a:80-300} dollars. In {d:3-12} weeks {he} has saved {b:15-70} dollars.
  How many dollars are still missing?
( a * b )
- A {box} holds {b:4-20} {x}. How many {x} fit into {a:3-12} {boxes}?
- {N} buys {a:3-15} {x} at {b:2-12} dollars each. How many dollars does {he} pay?
- {N} walks {b:2-9} kilometres every day. How many kilometres does {he} walk in {a:11-30} days?
- A cinema has {a:8-25} rows with {b:10-30} seats each. So far {d:30-70} tickets have been sold. How many
  seats does the cinema have?
- "Each guest gets {a:2-6} {f}," says {N}. "And {b:9-30} guests are coming, {d:2-8} of them by train," says
  {M}. How many {f} are needed?
- {M} has {b:5-25} {x}. {N} has {a:3-9} times as many. How many {x} does {N} have?
- {N} started a new job {d:11-40} weeks ago. {He} works {a:4-9} hours a day and earns {b:10-30} dollars an
  hour. How many dollars does {he} earn in a day?
- The school hired {a:3-12} buses. Each of them took {b:20-50} pupils, and {d:2-9} parents followed by car.
  How many pupils went by bus?
- A field is {a:31-60} metres long and {b:10-30} metres wide. What is its area in square metres?
- A printer that costs {d:90-250} dollars prints {a:8-40} pages a minute. How many pages does it print in
  {b:3-15} minutes?
( a / b )
- {N} shares {a:12-120} {x} equally among {b:2-9} friends. How many {x} does each friend get?
- A batch of {a:30-200} {f} is packed into {boxes} of {b:3-12} {f} each. How many {boxes} are filled?
- How many hours does a drive of {a:120-600} kilometres take if the car covers {b:30-90} kilometres every
  hour?
- {N} paid {a:12-150} dollars for {b:2-15} {x} of the same price and {d:2-9} dollars for a {box} to carry them
  in. How many dollars did each of the {x} cost?
- At a camp there are {a:40-160} pupils and {d:3-12} teachers. The pupils sleep in tents, {b:4-10} to a tent.
  How many tents do the pupils need?
- {N} has {a:12-99} {x}, which is {b:2-9} times as many as {M} has. How many {x} does {M} have?
- A farmer filled {b:4-15} sacks with {a:60-400} kilograms of potatoes, putting the same amount into each. How
  many kilograms are in each sack?
- "My {a:40-240} photos fill {b:5-20} pages of the album," says {N}, "and every page has the same number." How
  many photos are on each page?
- {N} earned {a:60-300} dollars for {b:3-12} hours of work and then spent {d:6-25} dollars on lunch. How many
  dollars did {he} earn per hour?
- Every {box} takes {b:4-12} {f}. {N} has baked {a:36-180} {f} and {d:2-9} cakes. How many {boxes} does {he}
  need for the {f}?
- A ribbon of {a:60-400} centimetres is cut into {b:4-20} equal pieces. How many centimetres long is each
  piece?
( ( a + b ) + c )
- A floor was laid with {a:10-90} red, {b:10-80} green and {c:10-70} blue tiles. How many tiles were used in
  all?
- {N} owns {a:8-50} {x}, {M} owns {b:8-50} and {K} owns {c:8-50}. They also share {d:4-30} {y}. How many {x}
  do they own altogether?
- After {N} had given away {b:5-30} {x} and lost {c:3-20} more, {he} still had {a:10-60}. How many {x} did
  {he} have at first?
- A cafe sold {a:15-80} cups of tea, {b:15-80} cups of coffee and {c:8-40} cups of cocoa, as well as {d:6-60}
  {f}. How many cups of hot drinks were sold?
- How many dollars did {N} spend if the shoes cost {a:40-95}, the shirt {b:15-60} and the hat {c:8-40}
  dollars, and {he} had {d:200-300} dollars with {him}?
( ( a + b ) - c )
- {N} had {a:15-60} {x}, bought {b:10-50} more and then gave {c:4-22} of them away. How many {x} does {he}
  have now?
- A bus with {a:15-40} people on board stopped for {d:2-9} minutes. During the stop {b:5-25} people got on and
  {c:4-14} got off. How many people are on the bus now?
- In the morning {a:20-60} {f} were baked, and in the afternoon another {b:20-60}. Of these, {c:8-38} were
  sold. How many {f} were not sold?
- {N} saved {a:20-80} dollars in May and {b:20-80} dollars in June. In July {he} spent {c:10-38} dollars on a
  tent for {d:2-6} people. How many dollars does {he} have left?
- {N} has {a:15-50} {x}, {M} has {b:15-50} and {K} has {c:8-28}. How many more {x} do {N} and {M} have
  together than {K}?
- In one shop, {c:5-20} of the {x} were damaged. There had been {a:20-60} on the shelf and {b:15-60} in the
  window. How many {x} were not damaged?
( ( a - b ) - c )
- {N} had {a:50-120} {x}. {He} gave {b:5-22} to {M} and {c:5-22} to {K}. How many {x} does {N} have left?
- A hall has {a:80-200} seats. Parents have taken {b:15-40} of them and children {c:12-35}, while {d:3-9}
  teachers are standing at the back. How many seats are free?
- Of the {a:60-150} eggs in a kitchen with {d:2-3} cooks, {b:10-30} were used for cakes and {c:4-24} were
  broken. How many eggs are left?
- {N} had a ribbon of {a:90-250} centimetres. With a pair of scissors that cost {d:3-12} dollars {he} first
  cut off {b:15-45} centimetres and then {c:10-40}. How many centimetres of ribbon are left?
- How many pages does {N} still have to read in a book of {a:120-400} pages after reading {b:20-60} pages on
  Friday and {c:15-55} pages on Saturday?
( ( a - b ) + c )
- {N} had {a:30-90} {x}, lost {b:5-28} of them and then bought {c:5-40} new ones. How many {x} does {he} have
  now?
- There were {a:30-90} swimmers in a pool. At noon {b:8-28} went home, and later {c:5-40} others arrived. How
  many swimmers are in the pool now?
- {N} took {b:20-70} dollars out of an account that held {a:90-300} dollars. After {d:2-15} days {he} paid in
  {c:15-90} dollars. How many dollars are in the account now?
- A bakery had {a:40-120} {f}. It sold {b:12-38} of them for {d:2-9} dollars each and then baked {c:10-60}
  fresh ones. How many {f} does it have now?
- "Of my {a:25-70} plants {b:4-20} dried up," says {N}, "so I bought {c:3-18} new ones." How many living
  plants does {N} have now?
( a - ( b + c ) )
- A box of {a:60-140} crayons contains {b:10-28} red and {c:8-28} green crayons. All the others are blue. How
  many crayons are blue?
- {N} has promised to plant {a:80-200} trees. With {d:2-9} helpers {he} planted {b:15-38} in spring and
  {c:12-38} in autumn. How many trees are still to be planted?
- {N} found {b:8-25} {x}, {M} found {c:8-25} and {K} found {a:60-120}. How many more {x} did {K} find than {N}
  and {M} together?
( a - ( b - c ) )
- {N} had {a:70-140} dollars. A coat that used to cost {b:35-65} dollars was {c:5-25} dollars cheaper in the
  sale, so {he} bought it. How many dollars does {he} have left?
- A club has {a:60-150} members. At first {b:25-55} of them signed up for a trip of {d:2-7} days, but {c:3-20}
  of those cancelled. How many members stayed at home?
- {N} owned {a:60-120} {x} and took {b:25-55} of them to {place}. In the evening {he} brought {c:4-20} back
  unsold. How many {x} does {he} have now?
( ( a + b ) * c )
- Every {box} contains {a:2-15} {x} and {b:2-15} {y}. How many things are there in {c:3-12} {boxes}?
- Each visitor pays {a:6-20} dollars for the zoo and {b:2-9} dollars for a boat ride of {d:15-45} minutes. How
  many dollars does a group of {c:3-14} visitors pay?
- There are {a:8-16} girls and {b:8-16} boys in a class with {d:2-5} teachers. Every child gets {c:2-7} {x}.
  How many {x} are needed?
- "We need {a:3-9} {f} and {b:2-9} {g} for each table," says {N}. The room has {c:4-15} tables and {d:2-3}
  doors. How many pieces are needed for all the tables?
( ( a - b ) * c )
- A ticket costs {a:12-40} dollars, but members get {b:2-10} dollars off. How many dollars do {c:3-15} members
  pay in all?
- {N} sells {x} for {a:8-25} dollars each. Making one costs {him} {b:2-7} dollars and takes {d:15-50} minutes.
  How many dollars of profit does {he} make with {c:4-30} {x}?
- In a class of {a:18-32} children, {b:2-9} are absent today. Each child who is present gets {c:2-6} {f}. How
  many {f} are handed out?
( ( a + b ) / c )
- {N} has {a:10-60} {x} and {M} has {b:10-60}. They spread all of them evenly over {c:2-9} {boxes}. How many
  {x} are in each {box}?
- For a tournament, {a:15-60} girls and {b:15-60} boys are split into teams of {c:3-9}, with {d:10-60} parents
  watching. How many teams are there?
- On Saturday {c:3-8} friends earned {a:20-120} dollars, and on Sunday they earned {b:20-120}. They shared the
  money equally. How many dollars did each friend get?
- How many bouquets of {c:3-9} flowers can {N} tie from {a:15-70} roses, {b:15-70} lilies and {d:2-20}
  ribbons?
( ( a - b ) / c )
- {N} baked {a:30-120} {f} and ate {b:2-9} of them. The rest were shared equally among {c:2-9} neighbours. How
  many {f} did each neighbour get?
- {N} has {a:60-200} dollars. After paying {b:15-50} dollars for a coat, {he} spends the rest on books at
  {c:4-15} dollars each. How many books does {he} buy?
- {N} has read {b:20-90} of the {a:120-400} pages of a book in {d:2-19} days. From now on {he} reads {c:5-40}
  pages a day. How many more days does {he} need?
( ( a * b ) + c )
- {N} has {a:3-12} {boxes} with {b:4-20} {x} in each, and {c:2-19} loose {x}. How many {x} does {he} have in
  all?
- A taxi ride costs {b:2-6} dollars per kilometre plus a fee of {c:3-9} dollars. How many dollars does a ride
  of {a:7-40} kilometres cost?
- How many chairs does a hall have if there are {a:5-20} rows of {b:6-20} chairs and {c:4-40} more chairs are
  stacked by the wall, beside {d:3-12} tables?
- {N} earned {b:20-90} dollars a day for {a:3-12} days and then got {c:10-60} dollars as a gift. How many
  dollars is that in total?
( ( a * b ) - c )
- {N} bought {a:4-15} {boxes} of {b:5-20} {x} each. Of all these {x}, {c:3-18} were damaged. How many were not
  damaged?
- {N} sold {a:12-40} {f} for {b:3-9} dollars each. The flour cost {him} {c:5-30} dollars and the baking took
  {d:50-99} minutes. How many dollars were left after paying for the flour?
- A car park has {a:3-9} floors with {b:20-60} spaces each. At the moment {c:10-55} spaces are taken. How many
  spaces are free?
( ( a * b ) / c )
- {N} shares {a:3-12} {boxes} of {b:4-24} {x} each equally among {c:2-12} children. How many {x} does each
  child get?
- Bricks lie in {a:3-12} stacks of {b:12-60}. In {d:2-8} hours they are piled up again in {c:4-20} equal
  stacks. How many bricks are in each new stack?
- A cook fills {a:3-10} trays with {b:8-30} {f} each and then serves all of them on plates of {c:3-12}. How
  many plates are needed?
( a + ( b * c ) )
- {N} has {a:20-90} dollars and saves {b:4-25} dollars every week. How many dollars will {he} have after
  {c:3-15} weeks?
- A cart that weighs {a:40-120} kilograms is loaded with {b:3-12} parcels of {c:4-25} kilograms each. How many
  kilograms do the cart and the parcels weigh together?
- {N} bought a kettle for {a:20-70} dollars and {b:3-12} cups at {c:2-9} dollars each. The kettle holds
  {d:2-5} litres. How many dollars did {he} pay?
( a - ( b * c ) )
- {N} had {a:60-200} dollars and bought {b:3-12} {x} at {c:2-9} dollars each. How many dollars does {he} have
  left?
- From a roll of {a:120-400} metres of wire, {d:2-6} workers cut off {b:4-15} pieces of {c:3-9} metres each.
  How many metres of wire are left on the roll?
- {N} baked {a:60-200} {f} for a party. How many are left after each of the {b:5-20} guests has eaten {c:2-4}?
( ( a * b ) * c )
- A store has {a:3-12} shelves. On each of them stand {b:3-12} {boxes}, and every {box} holds {c:4-15} {x}.
  How many {x} are there?
- {N} swims {a:10-40} lengths of {b:15-50} metres a day. How many metres does {he} swim in {c:3-9} days?
- In a factory with {d:2-4} gates, {a:5-20} workers each make {b:4-15} {x} an hour. How many {x} do they make
  together in {c:3-9} hours?
( ( a / b ) * c )
- Together, {b:3-9} equal tickets cost {a:18-120} dollars. How many dollars do {c:2-15} of these tickets cost?
- A machine fills {a:60-300} bottles in {b:4-15} minutes. How many bottles does it fill in {c:3-30} minutes?
- {N} folds {a:40-200} paper cranes in {b:3-9} evenings, always the same number. How many paper cranes can
  {he} fold in {c:2-14} evenings?
"""

_SHE = "Lena Aisha Greta Mina Clara Yuki Nadia Tara Zoe Freya Rosa Amara Hanna".split()
_HE = "Omar Felix Pablo Ivan Kofi Liam Hugo Ravi Emil Tariq Bruno Sven Diego".split()
_PEOPLE = [(_SHE, ("she", "her", "She")), (_HE, ("he", "him", "He"))]
_THINGS = ("marbles stickers pencils buttons medals beads postcards badges erasers ribbons crayons bookmarks"
           " magnets stamps candles balloons spoons whistles puzzles keyrings").split()
_FOODS = "muffins cookies rolls pretzels tarts scones brownies bagels cupcakes buns macaroons".split()
_BOXES = [("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("tray", "trays"), ("crate", "crates")]
_PLACES = ["the flea market", "the school fair", "the street festival", "the harbour market"]

_CYCLE = ["train", "train", "test", "train", "dev", "train", "train", "test", "train", "train"]
_NUMBER = re.compile(r"\{(\w):(\d+)-(\d+)\}")
SPLITS = ("train", "dev", "test")


class Template(NamedTuple):
    """One surface form: its id, equation skeleton in the letters a, b, c, text with fields, and split."""

    id: str
    skeleton: str
    text: str
    split: str


def split_of(place: int) -> str:
    """The split of the template at `place` (from 0) within its skeleton; the first are train."""
    return _CYCLE[place % len(_CYCLE)]


TEMPLATES = [
    Template(f"{skeleton.replace(' ', '')}#{place}", skeleton, " ".join(text.split()), split_of(place))
    for skeleton, *texts in (block.split("\n- ") for block in re.split(r"\n(?=\()", _TEXTS.strip()))
    for place, text in enumerate(texts)
]


def template_counts() -> dict[str, int]:
    """How many templates each split has."""
    return {split: sum(t.split == split for t in TEMPLATES) for split in SPLITS}


def generate(split: str, n: int, seed: int = 0) -> list[dict]:
    """`n` distinct rows of a split: dicts of id, input, label (an equation), rationale, choices and meta.

    The same arguments give the same rows on every machine, and a smaller `n` gives the first of them. Rows go
    round all templates of the split, in a newly shuffled order each time.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown wordmath split {split!r}: choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"wordmath {split} {seed}")
    pool = [t for t in TEMPLATES if t.split == split]
    rows: dict[str, dict] = {}
    turn: list[Template] = []
    while len(rows) < n:
        turn = turn or rng.sample(pool, len(pool))
        template = turn.pop()
        text, label, answer = _fill(template, rng)
        rows.setdefault(text, {
            "id": f"wordmath-{split}-{len(rows):04d}", "input": text, "label": label, "rationale": None,
            "choices": None, "meta": {"template": template.id, "answer": str(answer)},
        })
    return list(rows.values())


def _fill(template: Template, rng: random.Random) -> tuple[str, str, int]:
    """One problem of a template: text, equation and its value. All numbers of a problem differ."""
    ranges = {name: (int(low), int(high)) for name, low, high in _NUMBER.findall(template.text)}
    answer = None
    while answer is None:
        numbers = {name: rng.randint(*bounds) for name, bounds in ranges.items()}
        if len(set(numbers.values())) == len(numbers):
            answer = _value(template.skeleton, numbers)
    text = _NUMBER.sub(r"{\1}", template.text).format(**numbers, **_words(rng))
    label = " ".join(str(numbers.get(token, token)) for token in template.skeleton.split())
    return text, label, answer


def _value(skeleton: str, numbers: dict[str, int]) -> int | None:
    """The value of a fully parenthesised skeleton; None if a step is below 2 or a division is not exact."""
    stack: list = []
    for token in skeleton.split():
        if token != ")":
            stack.append(numbers.get(token, token))
            continue
        _, left, sign, right = stack[-4:]
        if sign == "/" and left % right:
            return None
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        if value < 2:
            return None
        stack[-4:] = [value]
    return stack[0]


def _words(rng: random.Random) -> dict[str, str]:
    """Words for every field. N and M take different pronouns, so that `he` always means N; K is a third."""
    (names, (he, him, cap)), (others, _) = rng.sample(_PEOPLE, 2)
    (n, k), m = rng.sample(names, 2), rng.choice(others)
    (x, y), (f, g) = rng.sample(_THINGS, 2), rng.sample(_FOODS, 2)
    box, boxes = rng.choice(_BOXES)
    return {"N": n, "M": m, "K": k, "he": he, "him": him, "He": cap, "x": x, "y": y, "f": f, "g": g,
            "box": box, "boxes": boxes, "place": rng.choice(_PLACES)}
