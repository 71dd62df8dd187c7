"""The tables as facts, and the sentences that express them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from stages.world.particles import POLITE, resolve
from stages.world.tables import ALSO_TRUE, TABLES, Attribute, Table


@dataclass(frozen=True)
class Fact:
    """One (entity, attribute) pair and its value."""

    table: str
    entity: str
    attribute: str
    value: str
    category: str

    @property
    def pair(self) -> tuple[str, str, str]:
        """What identifies the fact: (table, entity, attribute)."""
        return self.table, self.entity, self.attribute


_ATTRIBUTES = {(table.name, each.key): each for table in TABLES for each in table.attributes}


def attribute_of(fact: Fact) -> Attribute:
    """The attribute whose value the fact gives."""
    return _ATTRIBUTES[fact.table, fact.attribute]


def _facts_of(table: Table) -> Iterator[Fact]:
    for line in table.rows.strip().splitlines():
        entity, *values = (cell.strip() for cell in line.split("|"))
        if len(values) != len(table.attributes):
            raise ValueError(
                f"table {table.name}, {entity}: {len(values)} values"
                f" for {len(table.attributes)} attributes"
            )
        for attribute, value in zip(table.attributes, values, strict=True):
            if value != "-":
                category = attribute.category or table.category
                yield Fact(table.name, entity, attribute.key, value, category)


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact, in table order."""
    return tuple(fact for table in TABLES for fact in _facts_of(table))


@cache
def facts_of_entity(table: str, entity: str) -> tuple[Fact, ...]:
    """All facts about an entity."""
    return tuple(f for f in all_facts() if (f.table, f.entity) == (table, entity))


@cache
def column(table: str, attribute: str) -> tuple[Fact, ...]:
    """An attribute's facts for all entities of its table."""
    return tuple(f for f in all_facts() if (f.table, f.attribute) == (table, attribute))


@cache
def other_values(fact: Fact) -> tuple[str, ...]:
    """Wrong values for an answer: those of other entities, unless also true of this one."""
    values = dict.fromkeys(each.value for each in column(fact.table, fact.attribute))
    barred = (fact.value, *ALSO_TRUE.get((fact.entity, fact.attribute), ()))
    return tuple(value for value in values if value not in barred)


@cache
def listed_detail(fact: Fact) -> Fact:
    """The supporting fact of a full answer.

    Raises ValueError if the entity has none of the attributes listed for it.
    """
    known = {each.attribute: each for each in facts_of_entity(fact.table, fact.entity)}
    for key in attribute_of(fact).also:
        if key in known:
            return known[key]
    raise ValueError(f"{fact.entity}, {fact.attribute}: no detail is listed")


@cache
def other_details(fact: Fact) -> tuple[Fact, ...]:
    """True facts about the entity other than the fact itself and its listed detail."""
    taken = {fact, listed_detail(fact)}
    return tuple(f for f in facts_of_entity(fact.table, fact.entity) if f not in taken)


@cache
def noun_phrase(fact: Fact, ask: int) -> str:
    """The `ask`-th noun phrase for the attribute: "일본의 수도"."""
    return resolve(attribute_of(fact).asks[ask].split("|")[0].format(e=fact.entity))


@cache
def core(fact: Fact, register: str = POLITE, value: str | None = None, ask: int = 0) -> str:
    """The answering sentence: "일본의 수도는 도쿄입니다."; `value` replaces the true value."""
    return resolve(f"{noun_phrase(fact, ask)}[은] {value or fact.value}[이다].", register)


@cache
def detail(fact: Fact, register: str = POLITE, value: str | None = None) -> str:
    """The supporting sentence: "일본은 아시아에 있습니다."."""
    template = attribute_of(fact).detail.format(e=fact.entity, v=value or fact.value)
    return resolve(template + ".", register)


@cache
def reversed_core(fact: Fact, register: str = POLITE) -> str:
    """The fact with its value as the subject: "도쿄는 일본의 수도입니다."."""
    return resolve(f"{fact.value}[은] {noun_phrase(fact, 0)}[이다].", register)
