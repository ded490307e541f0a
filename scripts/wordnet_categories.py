"""Derives `ingest/words/categories.csv`, the pack of English categories, from WordNet's data files.

    python scripts/wordnet_categories.py /usr/share/wordnet ingest/words/categories.csv

The pack was made from WordNet 3.0 as the Debian package `wordnet-base` 1:3.0-37 ships it; its licence notice is
`ingest/words/categories.LICENSE`. The same files give the same bytes. The numbers of senses in `CATEGORIES`
are those of WordNet 3.0; with another version, look at every category again.

A category is a set of synsets. Its words are their lemmas, as WordNet writes them, where all of this holds:

- Three or more letters and nothing else; no word of the closed classes (`FUNCTION_WORDS`), which a model knows
  as that first of all; none that WordNet marks as a slur, an obscenity or disparaging, none of `VULGAR` or
  `DROPPED`.
- A quarter or more (`SHARE`) of what the word means is in the category. A sense weighs its tag count
  (cntlist.rev) plus 1/rank^2, its rank being its place among the lemma's senses in that part of speech; a verb a
  quarter of the latter, for where nobody tagged either ("whale"), the noun is what people write. The whole is
  every sense in every part of speech, in capitals or not. For a word in lower case that is also a regular form in
  -s or an irregular form of other words ("weeds", "felt"), their senses are in the whole as well.
- It is no such form of another word of the category, nor the same word in capitals. Two tokens of one word would
  stand in both halves when a category is split, and make a held-out figure look better than it is.
- It is among the category's first 150 (`MOST`) by that share times the word's frequency, which is its tags plus
  its occurrences in WordNet's glosses.

Rows are sorted by category, within a category by that figure from high to low, ties alphabetically.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

MOST = 150
SHARE = 1 / 4

_FUNCTION_WORDS = """
about after against all although among and another any are around because been before being beside besides
between both but can could did does doing done during each either every few for from had has have having her
hers herself him himself his how into its itself less many may might mine more most much must myself neither
nor not off one onto other others ought our ours ourselves out over per shall she should since some such than
that the thee their theirs them themselves these they this those thou though through throughout till toward
towards under unless until upon via was were what whatever when where whereas whether which while who whom
whose why will with within without would yet you your yours yourself
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
VULGAR = frozenset(
    (
        "bimbo",
        "blowjob",
        "cock",
        "cripple",
        "dildo",
        "fart",
        "midget",
        "piss",
        "pussy",
        "queer",
        "shag",
        "whore",
    )
)
"""Beyond what WordNet marks."""

# Terms are united from left to right; one that begins with "-" is taken away.
#   bird.n.1             a synset (lemma, part of speech, number of the sense) with all below it, instances too
#   kinds:person.n.1     the same without instances        named:person.n.1     the instances alone
#   only:now.r.1         the synset itself                 file:noun.animal     a lexicographer file
#   topic:law.n.1        what is marked as of a domain     of:country.n.2       adjectives made from such nouns
#   like:good.a.1        an adjective and its satellites   around:good.a.1      also those that it refers to
#   values:size.n.1      the adjectives for values of an attribute, with their satellites
#   gloss:r:REGEX        part of speech and how the definition begins, "_" for a blank
CATEGORIES: dict[str, str] = {
    # ---- living things ----
    "animal": "animal.n.1",
    "mammal": "mammal.n.1",
    "farm_animal": "domestic_animal.n.1 livestock.n.1 bovid.n.1 equine.n.1 swine.n.1 poultry.n.1 "
    "domestic_fowl.n.1",
    "bird": "bird.n.1 bird.n.2",
    "sea_animal": "fish.n.1 fish.n.2 seafood.n.1 aquatic_mammal.n.1 mollusk.n.1 crustacean.n.1 coelenterate.n.1 "
    "seabird.n.1",
    "invertebrate": "invertebrate.n.1",
    "plant": "plant.n.2",
    "tree": "tree.n.1 wood.n.1",
    "herb": "herb.n.1 flower.n.1 flower.n.2 vine.n.1",
    "plant_part": "plant_part.n.1",
    "fruit": "fruit.n.1 edible_fruit.n.1 fruit_tree.n.1",
    "crop": "produce.n.1 grain.n.2 crop.n.1 nut.n.1 vegetable.n.1",
    # ---- body and health ----
    "body_part": "body_part.n.1",
    "organ": "organ.n.1 gland.n.1",
    "body_substance": "body_substance.n.1",
    "bodily_process": "bodily_process.n.1",
    "disease": "disease.n.1",
    "symptom": "symptom.n.1",
    "drug": "drug.n.1",
    "medicine": "topic:medicine.n.1 medicine.n.2 medical_care.n.1 treatment.n.1 medicine.n.1 "
    "kinds:health_professional.n.1 kinds:sick_person.n.1",
    # ---- food ----
    "food": "food.n.1 food.n.2",
    "meal": "meal.n.1 dish.n.2 nutriment.n.1",
    "drink": "beverage.n.1",
    "cooking": "kitchen_utensil.n.1 tableware.n.1 kitchen_appliance.n.1 cutlery.n.2 oven.n.1 dish.n.1 "
    "topic:cooking.n.1 cook.v.3 cook.v.1 like:cooked.a.1 cooking.n.1 kinds:cook.n.1",
    # ---- things ----
    "artifact": "file:noun.artifact",
    "clothing": "clothing.n.1 footwear.n.2 footwear.n.1 headdress.n.1",
    "fabric": "fabric.n.1 fiber.n.1 thread.n.1",
    "furniture": "furniture.n.1 furnishing.n.2 bedclothes.n.1 floor_cover.n.1",
    "building": "building.n.1 housing.n.1",
    "room": "room.n.1 area.n.5",
    "structure": "structure.n.1",
    "way": "way.n.6 road.n.1 path.n.2 path.n.4",
    "institution": "institution.n.1 institution.n.2 establishment.n.4",
    "workplace": "workplace.n.1 plant.n.1 facility.n.1",
    "vehicle": "vehicle.n.1",
    "weapon": "weapon.n.1 weaponry.n.1 ammunition.n.1 explosive.n.1 gun.n.1 bomb.n.1",
    "tool": "tool.n.1 hand_tool.n.1 implement.n.1",
    "container": "container.n.1",
    "vessel": "vessel.n.3 bottle.n.1 bag.n.1 box.n.1 dish.n.1",
    "machine": "machine.n.1 engine.n.1 mechanism.n.5 motor.n.1",
    "device": "device.n.1",
    "electronics": "electronic_equipment.n.1 electronic_device.n.1 electrical_device.n.1 computer.n.1 circuit.n.1 "
    "telephone.n.1 topic:electronics.n.1 electronics.n.1 telecommunication.n.1",
    "covering": "covering.n.2",
    # ---- substances ----
    "substance": "file:noun.substance",
    "material": "material.n.1 building_material.n.1",
    "metal": "metallic_element.n.1 alloy.n.1 metal.n.1",
    "chemical_element": "chemical_element.n.1",
    "chemical": "chemical.n.1 compound.n.2",
    "biomolecule": "protein.n.1 macromolecule.n.1 enzyme.n.1 hormone.n.1 lipid.n.1 carbohydrate.n.1 vitamin.n.1",
    "gas": "gas.n.2 gas.n.1 vapor.n.1 atmosphere.n.3",
    "mineral": "mineral.n.1 rock.n.1 rock.n.2 gem.n.2 ore.n.1",
    # ---- nature and places ----
    "landform": "geological_formation.n.1 land.n.4 tract.n.1",
    "natural_object": "natural_object.n.1 -plant_part.n.1 -covering.n.1",
    "body_of_water": "body_of_water.n.1",
    "astronomy": "celestial_body.n.1 constellation.n.2 star.n.1 topic:astronomy.n.1 astronomy.n.1 outer_space.n.1 "
    "universe.n.1 kinds:astronomer.n.1",
    "weather": "atmospheric_phenomenon.n.1 weather.n.1 like:cloudy.a.1 like:stormy.a.1 precipitate.v.3 "
    "blow.v.2 only:hot.a.1 only:cold.a.1 only:wet.a.1 only:warm.a.1 only:dry.a.1 only:sunny.a.1 "
    "like:cold.a.1",
    "natural_phenomenon": "natural_phenomenon.n.1",
    "location": "file:noun.location -administrative_district.n.1 -city.n.1 -named:location.n.1",
    "region": "kinds:region.n.3 kinds:region.n.1",
    "boundary": "boundary.n.1 extremity.n.4 edge.n.6 surface.n.1",
    "country": "country.n.2 -american_state.n.1",
    "european_country": "european_country.n.1 scandinavian_country.n.1",
    "asian_country": "asian_country.n.1",
    "african_country": "african_country.n.1",
    "american_state": "american_state.n.1",
    "city": "city.n.1",
    # ---- people ----
    "person": "kinds:person.n.1",
    "profession": "kinds:worker.n.1 kinds:professional.n.1",
    "relative": "kinds:relative.n.1 kinds:spouse.n.1",
    "female": "kinds:female.n.2 female.n.1 kinds:mother.n.1 kinds:sister.n.1 kinds:aunt.n.1 kinds:grandma.n.1 "
    "kinds:niece.n.1 only:queen.n.2 only:queen.n.3 only:princess.n.1 only:nun.n.1 only:goddess.n.1 "
    "kinds:actress.n.1 only:hen.n.1 only:cow.n.1 only:mare.n.1 only:countess.n.1 only:duchess.n.1 "
    "only:hostess.n.1 only:bride.n.1 only:heroine.n.1 only:witch.n.1",
    "male": "kinds:male.n.2 male.n.1 kinds:father.n.1 kinds:brother.n.1 kinds:uncle.n.1 kinds:grandfather.n.1 "
    "kinds:nephew.n.1 only:king.n.1 only:prince.n.1 only:monk.n.1 only:god.n.1 kinds:husband.n.1 only:bull.n.1 "
    "only:rooster.n.1 only:duke.n.1 only:earl.n.1 only:lord.n.2 only:groom.n.1 only:priest.n.1 only:wizard.n.2 "
    "only:emperor.n.1",
    "leader": "kinds:leader.n.1",
    "religious_person": "kinds:religious_person.n.1 kinds:spiritual_leader.n.1",
    "artist": "kinds:artist.n.1 kinds:entertainer.n.1 kinds:writer.n.1 kinds:performer.n.1 "
    "kinds:musician.n.1",
    "scientist": "kinds:scientist.n.1 kinds:scholar.n.1 kinds:expert.n.1",
    "nationality": "kinds:inhabitant.n.1 of:country.n.2 of:continent.n.1",
    "deity": "kinds:spiritual_being.n.1 deity.n.1 -named:saint.n.1 only:god.n.1",
    "mythical_being": "imaginary_being.n.1 mythical_being.n.1 topic:greek_mythology.n.1 topic:norse_mythology.n.1",
    "famous_person": "named:person.n.1 -deity.n.1",
    "famous_writer": "named:writer.n.1",
    "famous_scholar": "named:scientist.n.1 named:scholar.n.1 named:intellectual.n.1",
    "famous_leader": "named:leader.n.1 named:head_of_state.n.1 named:ruler.n.1",
    "religious_name": "topic:old_testament.n.1 topic:new_testament.n.1 named:prophet.n.1 named:saint.n.1",
    # ---- groups ----
    "group": "file:noun.group",
    "organization": "organization.n.1",
    "gathering": "gathering.n.1",
    "team": "unit.n.3",
    "government": "government.n.1 political_unit.n.1 administrative_unit.n.1 topic:government.n.2",
    "people": "people.n.1 class.n.3",
    "collection": "collection.n.1",
    "arrangement": "arrangement.n.2",
    # ---- feeling and thinking ----
    "feeling": "file:noun.feeling",
    "emotion": "emotion.n.1",
    "happiness": "joy.n.1 happiness.n.2 happiness.n.1 like:happy.a.1 like:glad.a.1 like:joyful.a.1 like:cheerful.a.1 "
    "pleasure.n.1 like:pleasant.a.1 rejoice.v.1 enjoy.v.1 laugh.v.1 smile.v.1 laugh.n.1 like:pleased.a.1",
    "sadness": "sadness.n.1 sadness.n.2 unhappiness.n.2 misery.n.1 like:sad.a.1 like:unhappy.a.1 like:sorrowful.a.1 "
    "like:cheerless.a.1 mourn.v.1 grieve.v.1 cry.v.2 lament.v.1 regret.v.1 disappointment.n.1 suffer.v.1 "
    "despair.n.1 like:dejected.a.1 depression.n.1 like:hopeless.a.1",
    "fear": "fear.n.1 values:fear.n.1 values:alarm.n.1 fear.v.1 frighten.v.1 like:timid.a.1 anxiety.n.2",
    "anger": "anger.n.1 like:angry.a.1 anger.v.1 dislike.n.1 hate.n.1 like:hostile.a.1 hate.v.1 quarrel.v.1 "
    "hostility.n.3 quarrel.n.1",
    "love": "love.n.1 love.v.1 like.v.2 like:loving.a.1 affection.n.1 like:loved.a.1 kiss.n.1 marry.v.1 love.n.2 "
    "kinds:lover.n.1 kinds:spouse.n.1",
    "humor": "wit.n.1 joke.n.1 laugh.v.1 like:humorous.a.1 laugh.n.1 comedy.n.1 ridicule.v.1 play.n.8 "
    "amusement.n.1 joke.v.1 kinds:comedian.n.1 like:foolish.a.1",
    "cognition": "file:noun.cognition",
    "idea": "idea.n.1",
    "belief": "kinds:belief.n.1",
    "thinking": "thinking.n.1",
    "ability": "kinds:ability.n.2",
    "perception": "perception.n.3 sensation.n.1 sensation.n.2 sense.n.3 perceive.v.1",
    # ---- fields ----
    "field_of_study": "discipline.n.1",
    "science": "science.n.1",
    "physics": "physics.n.1 topic:physics.n.1 topic:optics.n.1 topic:mechanics.n.1 topic:electricity.n.1 "
    "topic:thermodynamics.n.1 elementary_particle.n.1 energy.n.1 mechanical_phenomenon.n.1 "
    "optical_phenomenon.n.1 electrical_phenomenon.n.1 kinds:physicist.n.1",
    "chemistry": "chemistry.n.1 topic:chemistry.n.1 chemical_element.n.1 chemical_process.n.1 "
    "topic:biochemistry.n.1 chemical_bond.n.1 kinds:chemist.n.1",
    "biology": "biology.n.1 topic:biology.n.1 topic:anatomy.n.1 topic:genetics.n.1 topic:botany.n.2 "
    "topic:physiology.n.1 cell.n.2 organic_process.n.1 taxonomic_group.n.1 topic:biochemistry.n.1",
    "mathematics": "mathematics.n.1 topic:mathematics.n.1 topic:geometry.n.1 topic:statistics.n.1 function.n.4 "
    "topic:arithmetic.n.1 mathematical_relation.n.1 polygon.n.1 mathematical_statement.n.1 calculate.v.1 "
    "kinds:mathematician.n.1",
    "computing": "topic:computer_science.n.1 computer.n.1 software.n.1 programming_language.n.1 programming.n.2 "
    "data_structure.n.1 topic:computer.n.1 computer_network.n.1 memory_device.n.1 data.n.1 program.v.2",
    "psychology": "topic:psychology.n.1 topic:psychiatry.n.1 psychology.n.1 psychological_state.n.1 "
    "mental_disorder.n.1 topic:psychoanalysis.n.1",
    "philosophy": "philosophy.n.2 topic:philosophy.n.2 philosophical_doctrine.n.1 topic:logic.n.1 "
    "kinds:philosopher.n.1 doctrine.n.1",
    "linguistics": "topic:linguistics.n.1 language_unit.n.1 grammar.n.1 topic:grammar.n.1 grammatical_category.n.1 "
    "linguistics.n.1 topic:phonetics.n.1",
    "religion": "religion.n.1 religion.n.2 topic:religion.n.1 topic:christianity.n.1 topic:islam.n.1 "
    "religious_ceremony.n.1 kinds:religious_person.n.1 topic:theology.n.1 topic:roman_catholic.n.2",
    "law": "law.n.1 topic:law.n.1 law.n.2 legal_document.n.1 kinds:lawyer.n.1 proceeding.n.1 legal_right.n.1",
    "crime": "crime.n.1 topic:criminal_law.n.1 topic:crime.n.1 kinds:criminal.n.1 wrongdoing.n.2",
    "politics": "politics.n.1 topic:politics.n.1 government.n.1 kinds:politician.n.1 kinds:politician.n.2 "
    "political_orientation.n.1 political_system.n.1 election.n.1 topic:politics.n.2 party.n.1 "
    "political_movement.n.1 topic:government.n.2",
    "military": "topic:military.n.1 military_action.n.1 kinds:serviceman.n.1 weapon.n.1 topic:navy.n.1",
    "war": "military_action.n.1 topic:war.n.1 war.n.1 fight.n.2 attack.v.1 fight.v.2 attack.n.1 conflict.n.1 "
    "contend.v.6 kinds:soldier.n.1 weapon.n.1",
    "business": "business.n.1 topic:business.n.1 topic:commerce.n.1 topic:commercial_enterprise.n.2 commerce.n.1 "
    "kinds:businessperson.n.1 topic:stock_exchange.n.1 transaction.n.1 buy.v.1 sell.v.1",
    "agriculture": "farming.n.1 topic:gardening.n.1 kinds:farmer.n.1 farm.n.1 cultivate.v.1 livestock.n.1 crop.n.1 "
    "topic:farming.n.1 grain.n.2 domestic_fowl.n.1 farm_building.n.1 farm_machine.n.1 topic:husbandry.n.1",
    "art": "art.n.1 art.n.2 art_form.n.1 topic:art.n.2 graphic_art.n.1 picture.n.1 topic:fine_arts.n.1 create.v.3 "
    "kinds:artist.n.1",
    "literature": "literary_composition.n.1 fiction.n.1 topic:literature.n.1 topic:poetry.n.1 literature.n.1 "
    "book.n.1 story.n.2 section.n.1 kinds:writer.n.1 drama.n.1 sacred_text.n.1",
    "theater": "show.n.3 dramatic_composition.n.1 topic:film.n.1 performance.n.1 kinds:actor.n.1 kinds:entertainer.n.1 "
    "topic:dramaturgy.n.1 theater.n.1 role.n.2 topic:dramatic_art.n.1",
    "music": "music.n.1 topic:music.n.1 musical_notation.n.1 kinds:musician.n.1 kinds:musician.n.2 music.n.2 music.n.5 "
    "musical_organization.n.1 tone.n.2 musical_instrument.n.1",
    "sport": "sport.n.1 topic:sport.n.1 topic:football.n.1 topic:baseball.n.1 topic:tennis.n.1 topic:basketball.n.1 "
    "topic:golf.n.1 topic:ice_hockey.n.1 topic:boxing.n.1 topic:cricket.n.2 athletic_game.n.1 kinds:athlete.n.1",
    "game": "game.n.1 game.n.3 topic:game.n.1 topic:chess.n.2 topic:card_game.n.1 topic:bridge.n.5 playing_card.n.1 "
    "gambling.n.1 kinds:player.n.1 game_equipment.n.1 plaything.n.1",
    "media": "medium.n.1 broadcasting.n.2 topic:television.n.1 topic:broadcasting.n.2 topic:photography.n.1 "
    "kinds:journalist.n.1 publication.n.1 press.n.2",
    "education": "education.n.1 school.n.1 topic:education.n.1 kinds:educator.n.1 kinds:student.n.1 teach.v.1 "
    "learn.v.1 class.n.4 course.n.1 degree.n.3 examination.n.2",
    # ---- communication ----
    "communication": "file:noun.communication",
    "language": "natural_language.n.1 artificial_language.n.1",
    "grammar": "language_unit.n.1",
    "letter": "character.n.8 written_symbol.n.1",
    "sign": "signal.n.1 symbol.n.1",
    "document": "document.n.1 written_communication.n.1",
    "speech_act": "speech_act.n.1",
    "speech": "speech.n.2 auditory_communication.n.1 -music.n.1",
    "statement": "statement.n.1",
    "message": "message.n.2",
    "information": "information.n.1",
    "sound": "sound.n.4 noise.n.1 sound.n.1 sound.v.1 utter.v.2 sound_property.n.1 cry.n.1 make_noise.v.1 sound.v.2",
    "picture": "representation.n.2 visual_communication.n.1 picture.n.1",
    # ---- acts and events ----
    "act": "file:noun.act",
    "activity": "activity.n.1",
    "motion": "motion.n.6 motion.n.3 change_of_location.n.1",
    "travel": "travel.n.1 journey.n.1 travel.v.1 kinds:traveler.n.1",
    "change": "change.n.3",
    "event": "file:noun.event",
    "social_event": "social_event.n.1",
    "death": "killing.n.2 kill.v.1 death.n.1 die.v.1 killing.n.1 wound.v.1 like:dead.a.1 burial.n.1",
    "work": "work.n.1",
    "trade": "commerce.n.1 transaction.n.1",
    "investigation": "investigation.n.2 investigation.n.1 research.n.1 investigate.v.1 search.v.1 examine.v.1 "
    "explore.v.1",
    "recreation": "diversion.n.1",
    # ---- quantities, money, time ----
    "number": "number.n.2 like:cardinal.a.2 like:ordinal.a.2 integer.n.1 large_integer.n.1",
    "ordinal": "like:ordinal.a.2 rank.n.2 common_fraction.n.1",
    "quantity": "definite_quantity.n.1 indefinite_quantity.n.1",
    "unit": "unit_of_measurement.n.1",
    "measure": "magnitude.n.1 fundamental_quantity.n.1",
    "size": "size.n.1 magnitude.n.1 dimension.n.1",
    "amount": "indefinite_quantity.n.1 amount.n.2",
    "currency": "monetary_unit.n.1 currency.n.1 coin.n.1",
    "money": "money.n.1 money.n.3 possession.n.2 pay.v.1",
    "possession": "file:noun.possession",
    "asset": "assets.n.1",
    "wealth": "wealth.n.1 wealth.n.3 around:rich.a.1 around:poor.a.2 like:expensive.a.1 poverty.n.1 luxury.n.1 "
    "valuable.n.1 kinds:rich_person.n.1 kinds:poor_person.n.1 treasure.n.1 like:valuable.a.1",
    "time": "file:noun.time",
    "time_unit": "time_unit.n.1 time_period.n.1 -named:time_period.n.1",
    "calendar": "day_of_the_week.n.1 calendar_month.n.1 season.n.2",
    "month": "calendar_month.n.1 month.n.1",
    "day": "day.n.1 day.n.3 calendar_day.n.1 day_of_the_week.n.1 holiday.n.2 day.n.4 season.n.1 season.n.2",
    # ---- properties and relations ----
    "attribute": "file:noun.attribute",
    "property": "property.n.2",
    "quality": "quality.n.1",
    "color": "color.n.1 values:hue.n.1 values:color.n.1 like:chromatic.a.3 pigment.n.1 dye.n.1 "
    "like:achromatic.a.1 like:black.a.1 like:white.a.1 color.v.1",
    "shape": "shape.n.2 values:shape.n.1",
    "appearance": "appearance.n.1 values:beauty.n.1 visual_property.n.1 beauty.n.1 -color.n.1",
    "trait": "trait.n.1",
    "virtue": "morality.n.1 virtue.n.1 good.n.3 like:virtuous.a.1",
    "vice": "evil.n.3 immorality.n.1 wickedness.n.1 like:evil.a.1 like:wicked.a.1 like:immoral.a.1 like:unkind.a.1 "
    "values:humaneness.n.1 dishonesty.n.1 sin.n.2 like:dishonest.a.1 deceive.v.1",
    "strength": "strength.n.1 values:strength.n.1 power.n.1 like:powerful.a.1 weakness.n.1 strengthen.v.1 weaken.v.1 "
    "strengthen.v.2",
    "light": "light.n.1 values:light.n.7 light.n.2 light.n.7 values:luminosity.n.1 light.v.1 shine.v.1 lamp.n.1 "
    "source_of_illumination.n.1",
    "heat": "temperature.n.1 heat.n.1 values:temperature.n.1 fire.n.1 burn.v.1 heat.v.1 heating_system.n.1 fire.n.3 "
    "combustion.n.1 cook.v.3 fuel.n.1",
    "danger": "danger.n.1 danger.n.3 like:dangerous.a.1 like:harmful.a.1 risk.n.1 threat.n.1 warn.v.1 threaten.v.2",
    "state": "file:noun.state",
    "condition": "condition.n.1",
    "status": "status.n.1",
    "relation": "file:noun.relation",
    "process": "file:noun.process",
    # ---- verbs ----
    "verb_body": "file:verb.body",
    "verb_change": "file:verb.change",
    "verb_become": "change.v.2 become.v.1",
    "verb_increase": "increase.v.1 increase.v.2 change_magnitude.v.1",
    "verb_begin_or_end": "begin.v.1 begin.v.2 begin.v.3 end.v.1 end.v.2 stop.v.1 stop.v.2 continue.v.1 continue.v.3",
    "verb_cognition": "file:verb.cognition",
    "verb_think": "think.v.3 think.v.1",
    "verb_know": "know.v.1 understand.v.1 learn.v.1 remember.v.1 remember.v.2 discover.v.1",
    "verb_judge": "evaluate.v.2",
    "verb_communication": "file:verb.communication",
    "verb_say": "express.v.2 state.v.1 say.v.1 talk.v.2",
    "verb_inform": "inform.v.1 tell.v.2",
    "verb_competition": "file:verb.competition",
    "verb_consumption": "file:verb.consumption",
    "verb_contact": "file:verb.contact",
    "verb_break": "break.v.2 destroy.v.2 cut.v.1 damage.v.1 separate.v.2",
    "verb_separate": "separate.v.2 separate.v.1 remove.v.1",
    "verb_join": "connect.v.1 attach.v.1 join.v.2",
    "verb_put": "put.v.1 arrange.v.1 fill.v.1",
    "verb_hit": "touch.v.1 hit.v.3 hit.v.5",
    "verb_creation": "file:verb.creation",
    "verb_make": "make.v.3",
    "verb_emotion": "file:verb.emotion",
    "verb_motion": "file:verb.motion",
    "verb_travel": "travel.v.1",
    "verb_move": "move.v.3",
    "verb_displace": "move.v.2",
    "verb_perception": "file:verb.perception",
    "verb_see": "see.v.1 look.v.1 perceive.v.1 watch.v.1",
    "verb_possession": "file:verb.possession",
    "verb_give": "give.v.3 transfer.v.5",
    "verb_get": "get.v.1 take.v.21 acquire.v.1",
    "verb_have": "have.v.1 keep.v.3 keep.v.1 hold.v.2",
    "verb_social": "file:verb.social",
    "verb_allow": "permit.v.1 agree.v.1 accept.v.2 support.v.1 approve.v.1 authorize.v.1",
    "verb_prevent": "prevent.v.1 prevent.v.2 forbid.v.1 refuse.v.1 defend.v.1 protect.v.1 resist.v.1",
    "verb_cause": "make.v.2 induce.v.2 cause.v.1 influence.v.1",
    "verb_stative": "file:verb.stative",
    "verb_exist": "be.v.1 be.v.2 exist.v.1",
    # ---- adjectives ----
    "adjective_age": "values:age.n.1 like:modern.a.1 like:past.a.1 values:currentness.n.1 values:seniority.n.1",
    "adjective_bad": "like:bad.a.1 like:inferior.a.2 like:unpleasant.a.1 like:alarming.a.1 like:ugly.a.1 "
    "like:unfortunate.a.1 like:evil.a.1 like:harmful.a.1 like:dirty.a.1",
    "adjective_beautiful": "values:beauty.n.1 values:attractiveness.n.2 like:impressive.a.1 like:elegant.a.1",
    "adjective_body": "of:body_part.n.1 of:organ.n.1 of:disease.n.1",
    "adjective_character": "like:kind.a.1 around:brave.a.1 like:honest.a.1 like:friendly.a.1 like:cruel.a.1 "
    "around:proud.a.1 values:humaneness.n.1 like:loyal.a.1 like:sincere.a.1 like:polite.a.1 "
    "like:generous.a.1 like:modest.a.1 like:patient.a.1 like:stubborn.a.1",
    "adjective_degree": "values:degree.n.1 like:intense.a.1 like:complete.a.1 like:extreme.a.1 values:integrity.n.1 "
    "values:moderation.n.1 values:completeness.n.1",
    "adjective_difference": "values:difference.n.1 around:same.a.1 around:similar.a.1 around:equal.a.1 "
    "around:different.a.1 values:similarity.n.1",
    "adjective_difficulty": "values:difficulty.n.4 around:difficult.a.1 around:easy.a.1 values:complexity.n.1",
    "adjective_emotion": "around:happy.a.1 around:sad.a.1 around:afraid.a.1 around:angry.a.1 around:glad.a.1 "
    "values:fear.n.1",
    "adjective_good": "like:good.a.1 like:good.a.2 like:superior.a.2 values:quality.n.2 like:impressive.a.1 "
    "like:extraordinary.a.1 like:pleasant.a.1 like:beautiful.a.1",
    "adjective_health": "values:health.n.1 around:healthy.a.1 around:ill.a.1 around:unhealthy.a.1 like:injured.a.1 "
    "like:tired.a.1",
    "adjective_importance": "values:importance.n.1 values:necessity.n.1 like:essential.a.1 around:important.a.1",
    "adjective_moral": "values:morality.n.1 around:moral.a.1 like:good.a.3 like:wrong.a.2 around:honorable.a.1 "
    "around:right.a.2 like:just.a.1 values:worthiness.n.1",
    "adjective_nationality": "of:country.n.2 of:continent.n.1",
    "adjective_ordinary": "values:ordinariness.n.1 like:common.a.1 values:usualness.n.1 like:strange.a.1 "
    "values:normality.n.1 values:generality.n.2",
    "adjective_position": "values:position.n.7 values:distance.n.1 around:internal.a.1 around:top.a.1 around:bottom.a.1 "
    "values:orientation.n.3 values:north.n.4 like:side.a.1",
    "adjective_quantity": "values:quantity.n.2 values:numerousness.n.1 around:many.a.1 around:few.a.1 "
    "around:abundant.a.1 around:multiple.a.1 values:fullness.n.3",
    "adjective_relational": "file:adj.pert",
    "adjective_religion": "of:religion.n.1 of:religion.n.2 of:belief.n.1 of:religious_person.n.1 of:deity.n.1 "
    "like:holy.a.1",
    "adjective_science": "of:science.n.1 of:discipline.n.1",
    "adjective_shape": "values:shape.n.1 around:round.a.1 around:straight.a.1 around:curved.a.1 around:pointed.a.1 "
    "around:flat.a.1 values:orientation.n.3",
    "adjective_size": "values:size.n.1 values:width.n.1 values:height.n.1 values:length.n.1 values:thickness.n.1 "
    "values:depth.n.1 values:weight.n.1",
    "adjective_temperature": "values:temperature.n.1 values:wetness.n.1 like:warm.a.1",
    "adjective_time": "values:timing.n.1 values:duration.n.3 values:permanence.n.1 values:temporal_relation.n.1 "
    "values:speed.n.2",
    "adjective_truth": "around:true.a.1 around:false.a.1 around:real.a.1 values:reality.n.2 values:certainty.n.1 "
    "like:counterfeit.a.1",
    # ---- adverbs ----
    "adverb": "file:adv.all",
    "adverb_manner": "gloss:r:in_(an?|the)_.*(manner|way|fashion)",
    "adverb_degree": "only:very.r.1 only:quite.r.1 only:extremely.r.1 only:highly.r.1 only:completely.r.1 only:totally.r.1 "
    "only:absolutely.r.1 only:almost.r.1 only:barely.r.1 only:slightly.r.1 only:somewhat.r.1 only:fairly.r.1 "
    "only:deeply.r.1 only:greatly.r.1 only:enormously.r.1 only:vastly.r.1 only:considerably.r.1 "
    "only:significantly.r.1 only:partly.r.1 only:fully.r.1 only:thoroughly.r.1 only:utterly.r.1 only:perfectly.r.1 "
    "only:particularly.r.1 only:especially.r.1 only:exceptionally.r.1 only:remarkably.r.1 only:terribly.r.1 "
    "only:incredibly.r.1 only:truly.r.1 only:approximately.r.1 only:merely.r.1 only:purely.r.1 only:mostly.r.1 "
    "only:largely.r.1 only:moderately.r.1 only:relatively.r.1 only:increasingly.r.1 only:rather.r.2 only:too.r.1 "
    "only:strongly.r.1 only:extensively.r.1 only:profoundly.r.1 only:hardly.r.1 only:widely.r.1 only:primarily.r.1",
    "adverb_time": "only:now.r.1 only:then.r.1 only:soon.r.1 only:already.r.1 only:yesterday.r.1 only:tomorrow.r.1 "
    "only:tonight.r.1 only:recently.r.1 only:early.r.1 only:always.r.1 only:never.r.1 only:frequently.r.1 "
    "only:sometimes.r.1 only:occasionally.r.1 only:rarely.r.1 only:usually.r.1 only:formerly.r.1 "
    "only:currently.r.1 only:immediately.r.1 only:again.r.1 only:once.r.1 only:twice.r.1 only:later.r.1 "
    "only:earlier.r.1 only:finally.r.1 only:suddenly.r.1 only:forever.r.1 only:daily.r.1 "
    "only:weekly.r.1 only:annually.r.1 only:previously.r.1 only:subsequently.r.1 only:meanwhile.r.1 "
    "only:simultaneously.r.1 only:temporarily.r.1 only:permanently.r.1 only:constantly.r.1 only:shortly.r.1 "
    "only:overnight.r.1 only:initially.r.1 only:originally.r.1 only:ultimately.r.1 only:ever.r.1 only:still.r.1 "
    "only:nowadays.r.1 only:today.r.1 only:gradually.r.1 only:regularly.r.1 only:ago.r.1 only:instantly.r.1",
    "adverb_place": "only:here.r.1 only:there.r.1 only:everywhere.r.1 only:nowhere.r.1 only:somewhere.r.1 "
    "only:anywhere.r.1 only:away.r.1 only:forward.r.1 only:backward.r.1 only:upward.r.1 only:downward.r.1 "
    "only:abroad.r.1 only:ahead.r.1 only:apart.r.1 only:aside.r.1 only:inside.r.1 only:outside.r.1 "
    "only:upstairs.r.1 only:downstairs.r.1 only:nearby.r.1 only:underground.r.1 only:overseas.r.1 "
    "only:elsewhere.r.1 only:locally.r.1 only:internationally.r.1 only:together.r.1 "
    "only:alongside.r.1 only:above.r.1 only:below.r.2 only:underneath.r.1 only:upstream.r.1 only:downstream.r.1 "
    "only:inland.r.1 only:offshore.r.1 only:northward.r.1 only:eastward.r.1 only:overhead.r.1 only:ashore.r.1 "
    "only:aboard.r.1 only:outdoors.r.1 only:indoors.r.1 only:home.r.1 only:down.r.1 only:up.r.1 only:back.r.1 "
    "only:south.r.1 only:west.r.1 only:backwards.r.1 only:forth.r.1 only:uphill.r.1 only:downtown.r.1",
    "adverb_sentence": "only:probably.r.1 only:possibly.r.1 only:perhaps.r.1 only:certainly.r.1 only:definitely.r.1 "
    "only:clearly.r.1 only:apparently.r.1 only:presumably.r.1 only:supposedly.r.1 only:allegedly.r.1 "
    "only:undoubtedly.r.1 only:indeed.r.1 only:actually.r.1 only:hopefully.r.1 only:fortunately.r.1 "
    "only:unfortunately.r.1 only:surprisingly.r.1 only:honestly.r.1 only:frankly.r.1 only:nevertheless.r.1 "
    "only:therefore.r.1 only:consequently.r.1 only:accordingly.r.1 only:moreover.r.1 only:besides.r.1 only:also.r.1 "
    "only:otherwise.r.1 only:instead.r.1 only:hence.r.2 only:thus.r.2 only:naturally.r.1 only:ironically.r.1 "
    "only:basically.r.1 only:generally.r.1 only:specifically.r.1 only:essentially.r.1 only:alternatively.r.1 "
    "only:likewise.r.1 only:similarly.r.1 only:obviously.r.1 only:evidently.r.1 only:sadly.r.1 only:luckily.r.1",
}

# Words that the rules let through though a reader would think of something else first.
DROPPED: dict[str, str] = {
    "amount": "jack",
    "asset": "peanuts",
    "body_substance": "cum DES",
    "color": "rinse bleach complementary flushed",
    "cooking": "squid",
    "crime": "torpedo overeating",
    "crop": "Jonathan annon gean cob",
    "device": "web",
    "drink": "generic",
    "drug": "acoustic generic brew refill",
    "fabric": "axon",
    "field_of_study": "hero heroine villain persona",
    "food": "Jonathan generic",
    "fruit": "Jonathan annon gean cob",
    "game": "hacker",
    "government": "ally palace Carthage progressive bounty DoS CSE",
    "happiness": "belonging encouraged diverted",
    "herb": "Alexander rue everlasting chess",
    "language": "Ron Karen Min Shan",
    "law": "kite ban dock stake",
    "leader": "Bart primate",
    "male": "stiff",
    "military": "Johnny Reb fodder voluntary",
    "mineral": "calculus",
    "money": "lettuce sap",
    "music": "Romans Psalms Proverbs quotation preface",
    "natural_object": "calculus radiator",
    "number": "fin",
    "organ": "ticker tit",
    "people": "cream market labor labour",
    "plant": "Alexander chess thrift",
    "plant_part": "Jonathan",
    "possession": "lettuce kite",
    "profession": "fodder Reb Johnny voluntary subsidiary",
    "quantity": "fin jack",
    "room": "john",
    "sadness": "care",
    "sea_animal": "steamer hind",
    "symptom": "founder rick",
    "team": "DoS CSE",
    "vice": "humanitarian gull stinging overeating",
    "war": "pepper Johnny infest circumvent Reb orderly fodder",
    "wealth": "bust",
    "weather": "gay",
    "workplace": "sampler",
}


# ---- WordNet's files ----------------------------------------------------------------------------

_LEXICOGRAPHER_NAMES = """
adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body
noun.cognition noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive
noun.object noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation
noun.shape noun.state noun.substance noun.time verb.body verb.change verb.cognition verb.communication
verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception
verb.possession verb.social verb.stative verb.weather adj.ppl
"""
_LEXICOGRAPHER_FILES = _LEXICOGRAPHER_NAMES.split()
_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_TYPES = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
_OFFENSIVE = ("ethnic_slur.n.1", "disparagement.n.1", "obscenity.n.2")
_WORD = re.compile("[A-Za-z]{3,}")

SynsetId = tuple[str, int]
"""Part of speech (n, v, a, r; satellites are a) and offset in that data file."""


@dataclass(frozen=True)
class Synset:
    """`pointers` are (symbol, target, number of the word it starts from, 0 for the whole synset)."""

    lexicographer_file: str
    type: str
    words: tuple[str, ...]
    lex_ids: tuple[int, ...]
    pointers: tuple[tuple[str, SynsetId, int], ...]
    gloss: str

    def to(self, *symbols: str) -> list[SynsetId]:
        return [target for symbol, target, _ in self.pointers if symbol in symbols]


class WordNet:
    """The files of one folder.

    Attributes:
        synsets: by part of speech and offset.
        senses: the synsets of a lemma (lower case) and a part of speech, most frequent first.
        pointing: the synsets that point to one, by pointer symbol.
        weights: what each sense of a lemma weighs, see the module's docstring.
        tags: of a lemma, over all its senses. glosses: how often a word stands in glosses, as written.
        irregular: the lemmas of an irregular form.
    """

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[SynsetId, Synset] = {}
        self.senses: dict[tuple[str, str], list[SynsetId]] = {}
        for pos, name in _FILES.items():
            for line in _lines(folder / f"data.{name}"):
                self.synsets[pos, int(line[:8])] = _synset(line)
            for line in _lines(folder / f"index.{name}"):
                lemma, _, n, *rest = line.split()
                self.senses[lemma, pos] = [(pos, int(offset)) for offset in rest[-int(n) :]]
        self.pointing: dict[tuple[str, SynsetId], list[SynsetId]] = defaultdict(list)
        for id, synset in self.synsets.items():
            for symbol, target, _ in synset.pointers:
                self.pointing[symbol, target].append(id)
        self.glosses = Counter(
            word for synset in self.synsets.values() for word in re.findall("[A-Za-z]+", synset.gloss)
        )
        self.irregular: dict[str, list[str]] = defaultdict(list)
        for name in ("noun", "verb", "adj"):
            for line in _lines(folder / f"{name}.exc"):
                form, *lemmas = line.split()
                self.irregular[form] += lemmas
        self.weights: dict[str, dict[SynsetId, float]] = defaultdict(dict)
        self.tags = Counter[str]()
        self._weigh(folder / "cntlist.rev")
        self._offensive = {self.sense(name) for name in _OFFENSIVE}

    def _weigh(self, path: Path) -> None:
        # The counts go by sense key. Their sense numbers are another version's, and some 1,900 of 37,000 keys
        # are of senses that are gone.
        counts = {key: int(n) for key, _, n in map(str.split, _lines(path))}
        for (lemma, _), ids in self.senses.items():
            for rank, id in enumerate(ids, 1):
                synset = self.synsets[id]
                n = counts.get(
                    self._key(synset, [_bare(word).lower() for word in synset.words].index(lemma)), 0
                )
                self.weights[lemma][id] = n + (1 / 4 if id[0] == "v" else 1) / rank**2
                self.tags[lemma] += n

    def _key(self, synset: Synset, word: int) -> str:
        head = ":"
        if synset.type == "s":
            first = self.synsets[synset.to("&")[0]]
            head = f"{first.words[0].lower()}:{first.lex_ids[0]:02d}"
        lemma, file = _bare(synset.words[word]).lower(), _LEXICOGRAPHER_FILES.index(synset.lexicographer_file)
        return f"{lemma}%{_TYPES[synset.type]}:{file:02d}:{synset.lex_ids[word]:02d}:{head}"

    def sense(self, name: str) -> SynsetId:
        """The synset of "bird.n.1"."""
        lemma, pos, rank = name.rsplit(".", 2)
        return self.senses[lemma.lower(), pos][int(rank) - 1]

    def below(self, root: SynsetId, *symbols: str) -> set[SynsetId]:
        """`root` and what points to it by one of `symbols`, over any number of steps."""
        found, left = set[SynsetId](), [root]
        while left:
            id = left.pop()
            if id not in found:
                found.add(id)
                left += [each for symbol in symbols for each in self.pointing[symbol, id]]
        return found

    # ---- categories ---------------------------------------------------------------------------------

    def synsets_of(self, terms: str) -> set[SynsetId]:
        """What a definition in `CATEGORIES` selects."""
        found = set[SynsetId]()
        for term in terms.split():
            selected = self._term(term.removeprefix("-"))
            if not selected:
                raise ValueError(f"{term} selects nothing")
            found = found - selected if term.startswith("-") else found | selected
        return found

    def _term(self, term: str) -> set[SynsetId]:
        kind, _, name = term.partition(":")
        if not name:
            return self.below(self.sense(term), "@", "@i")
        if kind == "file":
            return {id for id, synset in self.synsets.items() if synset.lexicographer_file == name}
        if kind == "gloss":
            pos, _, start = name.partition(":")
            begins = re.compile(start.replace("_", " "))
            return {id for id, synset in self.synsets.items() if id[0] == pos and begins.match(synset.gloss)}
        root = self.sense(name)
        if kind == "kinds":
            return self.below(root, "@")
        if kind == "named":
            return self.below(root, "@", "@i") - self.below(root, "@")
        if kind == "only":
            return {root}
        if kind == "topic":
            return set(self.pointing[";c", root])
        if kind == "like":
            return self._like(root)
        if kind == "around":
            return {id for each in (root, *self.synsets[root].to("^")) for id in self._like(each)}
        if kind == "values":
            return {id for each in self.pointing["=", root] if each[0] == "a" for id in self._like(each)}
        if kind == "of":
            nouns = self.below(root, "@", "@i")
            return {id for noun in nouns for id in self.pointing["\\", noun] if id[0] == "a"}
        raise ValueError(f"unknown term {term}")

    def _like(self, adjective: SynsetId) -> set[SynsetId]:
        return {adjective, *self.synsets[adjective].to("&")}

    def words_of(self, ids: Collection[SynsetId], dropped: Collection[str] = ()) -> list[str]:
        """The words of a category, as the module's docstring says."""
        words = {
            word
            for id in ids
            for number, word in enumerate(map(_bare, self.synsets[id].words), 1)
            if _WORD.fullmatch(word) and not self._offends(self.synsets[id], number)
        }
        words -= FUNCTION_WORDS | VULGAR | set(dropped)
        scores = dict[str, float]()
        for word in words:
            share = self._share(word, ids)
            again = {word.lower(), *self._lemmas(word)} - {word}
            if share >= SHARE and words.isdisjoint(again):
                scores[word] = share * (self.tags[word.lower()] + self.glosses[word])
        return sorted(scores, key=lambda word: (-scores[word], word))[:MOST]

    def _offends(self, synset: Synset, number: int) -> bool:
        return any(
            symbol == ";u" and target in self._offensive and source in (0, number)
            for symbol, target, source in synset.pointers
        )

    def _share(self, word: str, ids: Collection[SynsetId]) -> float:
        senses = dict(self.weights[word.lower()])
        for lemma in self._lemmas(word):
            regular = lemma not in self.irregular.get(word, ())  # adjectives and adverbs take no -s
            senses |= {id: n for id, n in self.weights.get(lemma, {}).items() if id[0] in "nv" or not regular}
        return sum(n for id, n in senses.items() if id in ids) / sum(senses.values())

    def _lemmas(self, word: str) -> list[str]:
        """What `word` may be a form of."""
        return [*_stems(word), *self.irregular.get(word, ())] if word.islower() else []


def _stems(word: str) -> list[str]:
    """What `word` may be the regular plural or third person of."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return []
    stems = [word[:-1]]
    if word.endswith("ies"):
        stems.append(word[:-3] + "y")
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        stems.append(word[:-2])
    return stems


def _bare(word: str) -> str:
    return word.partition("(")[0]  # adjectives may carry where they stand: "galore(ip)"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="ascii", errors="replace") as stream:
        yield from (line for line in stream if not line.startswith("  "))  # the notice is indented


def _synset(line: str) -> Synset:
    data, _, gloss = line.partition("|")
    _, file, kind, n, *rest = data.split()
    end = 2 * int(n, 16)
    pointers = rest[end + 1 : end + 1 + 4 * int(rest[end])]
    return Synset(
        _LEXICOGRAPHER_FILES[int(file)],
        kind,
        tuple(rest[0:end:2]),
        tuple(int(lex_id, 16) for lex_id in rest[1:end:2]),
        tuple(
            (symbol, (pos.replace("s", "a"), int(offset)), int(ends[:2], 16))
            for symbol, offset, pos, ends in zip(*(pointers[i::4] for i in range(4)), strict=True)
        ),
        gloss.strip(),
    )


def write(folder: Path, output: Path) -> None:
    """Reads WordNet in `folder` and writes the pack to `output`.

    Raises OSError or ValueError where a file is missing or a term of `CATEGORIES` selects nothing, and
    KeyError or IndexError for a sense that this WordNet does not have.
    """
    wordnet = WordNet(folder)
    with output.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["category", "word"])
        for name in sorted(CATEGORIES):
            dropped = DROPPED.get(name, "").split()
            writer.writerows(
                (name, word) for word in wordnet.words_of(wordnet.synsets_of(CATEGORIES[name]), dropped)
            )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Derive the pack of categories from WordNet's data files.")
    parser.add_argument("folder", type=Path, help="holds data.noun, index.noun, cntlist.rev ...")
    parser.add_argument("output", type=Path, help="the CSV to write")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.output)


if __name__ == "__main__":
    main()
