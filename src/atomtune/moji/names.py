"""What moji can draw: the names, the split, and the words of a prompt.

A name is the slug the emoji sets share (`red-apple`); `spoken` turns it into what a person types ("red apple"). The
split is fixed: the base never sees the 30 held-out names, nor a drawing of the same subject under another name (a seen
name shares no word with a held-out one). The judge that scores images may know them.
"""

NATURE = """
ant baby-chick badger bat bear beaver bird blowfish boar bouquet bug butterfly camel cat cherry-blossom chicken
chipmunk cockroach coral cow crab cricket crocodile deciduous-tree deer dodo dog dolphin donkey dragon duck eagle
elephant evergreen-tree feather fish fly four-leaf-clover frog goat gorilla hamster hibiscus hippopotamus honeybee
horse jellyfish kangaroo lady-beetle leopard lion lizard llama lobster lotus mammoth maple-leaf monkey moose mosquito
mouse orangutan otter owl ox oyster palm-tree panda parrot peacock pig polar-bear potted-plant rabbit raccoon rat
rhinoceros rooster rose scorpion seal seedling shamrock shark sheaf-of-rice shrimp skunk sloth snake spider
spiral-shell squid sunflower swan t-rex tiger tropical-fish tulip turkey unicorn whale wolf worm zebra bison goose
dove beetle blossom wing spider-web paw-prints
""".split()
FOOD = """
amphora avocado baby-bottle bacon baguette-bread banana beer-mug bell-pepper birthday-cake blueberries bread broccoli
bubble-tea burrito candy carrot cheese-wedge cherries chestnut chocolate-bar chopsticks cocktail-glass coconut cookie
croissant cucumber cup-with-straw cupcake doughnut dumpling ear-of-corn egg eggplant fortune-cookie french-fries
garlic ginger-root glass-of-milk grapes green-apple hamburger honey-pot hot-beverage hot-dog hot-pepper ice-cream
kitchen-knife kiwi-fruit lemon lime lollipop mango melon onion pancakes peach peanuts pear pie pizza popcorn potato
poultry-leg pretzel red-apple sandwich spaghetti spoon sushi taco takeout-box tomato waffle wine-glass shortcake
soft-ice-cream shaved-ice rice-ball bento-box cooked-rice pot-of-food meat-on-bone tropical-drink tumbler-glass salt
jar beverage-box bagel olive tangerine butter steaming-bowl fried-shrimp ice
""".split()
PLAY = """
american-football artist-palette baseball basketball bowling boxing-glove bullseye chess-pawn christmas-tree
crystal-ball curling-stone diving-mask fishing-pole flying-disc framed-picture game-die ice-skate jack-o-lantern
joystick kite magic-wand nesting-dolls pool-8-ball puzzle-piece ribbon running-shirt skis sled soccer-ball
sports-medal teddy-bear ticket trophy volleyball water-pistol wrapped-gift yarn yo-yo badminton ping-pong tennis
carp-streamer wind-chime sewing-needle thread sparkles
""".split()
OBJECTS = """
abacus accordion axe balance-scale ballet-shoes banjo basket bathtub battery bed bell bikini billed-cap bomb books
boomerang bow-and-arrow briefcase broom bucket calendar camera carpentry-saw chains chair clipboard coat coin
computer-mouse crayon credit-card dagger desktop-computer door dress electric-plug envelope film-projector
fire-extinguisher flashlight flat-shoe floppy-disk flute folding-hand-fan fountain-pen gear gem-stone glasses gloves
goggles graduation-cap hammer handbag headphone high-heeled-shoe hiking-boot jeans keyboard ladder laptop light-bulb
lipstick locked lotion-bottle loudspeaker magnet magnifying-glass-tilted-left mans-shoe maracas megaphone microphone
microscope mirror moai mobile-phone money-bag mouse-trap movie-camera musical-keyboard necktie open-book package
paintbrush paperclip pen pencil pill plunger postbox printer pushpin radio rescue-workers-helmet ring running-shoe
safety-pin satellite-antenna saxophone scarf screwdriver scroll shield shopping-cart shorts shower soap socks sponge
stethoscope straight-ruler studio-microphone sunglasses syringe t-shirt telephone television test-tube thong-sandal
toilet toolbox toothbrush top-hat triangular-ruler trumpet video-camera violin womans-boot womans-hat womans-sandal
wrench red-paper-lantern newspaper notebook label wastebasket telephone-receiver alembic razor clamp military-helmet
fax-machine file-cabinet kimono lab-coat safety-vest one-piece-swimsuit crutch dna postal-horn nut-and-bolt
clapper-board cigarette coffin memo shopping-bags bookmark
""".split()
PLACES = """
airplane alarm-clock ambulance automobile bicycle bus canoe carousel-horse church circus-tent cloud
cloud-with-lightning cloud-with-rain cloud-with-snow crescent-moon delivery-truck droplet factory ferris-wheel ferry
fire fire-engine fountain fuel-pump globe-showing-europe-africa high-voltage hospital hourglass-not-done house hut
kick-scooter locomotive luggage manual-wheelchair motor-boat motor-scooter motorcycle mountain parachute pickup-truck
police-car racing-car rainbow ring-buoy rock roller-coaster roller-skate sailboat satellite school seat skateboard
snowflake speedboat sport-utility-vehicle star stop-sign stopwatch sun taxi tent thermometer tornado umbrella volcano
watch wood bellhop-bell tram train metro monorail ship mosque stadium statue-of-liberty water-wave desert-island hotel
bank office-building full-moon comet barber-pole brick flying-saucer compass ringed-planet wheel tokyo-tower
small-airplane
""".split()
FIGURES = """
ghost alien skull red-heart robot
""".split()

SEEN_NAMES = [*NATURE, *FOOD, *PLAY, *OBJECTS, *PLACES, *FIGURES]

HELD_OUT_ANIMALS = "penguin octopus fox koala snail turtle hedgehog flamingo giraffe".split()
HELD_OUT_OBJECTS = """
teapot guitar pineapple cactus mushroom strawberry helicopter rocket scissors anchor crown backpack key candle balloon
snowman watermelon telescope castle tractor drum
""".split()
HELD_OUT_NAMES = [*HELD_OUT_ANIMALS, *HELD_OUT_OBJECTS]

_SPOKEN = {
    "automobile": "car",
    "baguette-bread": "baguette",
    "balance-scale": "scale",
    "billed-cap": "cap",
    "blowfish": "pufferfish",
    "carpentry-saw": "saw",
    "cheese-wedge": "cheese",
    "cloud-with-lightning": "thunder cloud",
    "cloud-with-rain": "rain cloud",
    "cloud-with-snow": "snow cloud",
    "cup-with-straw": "soda",
    "deciduous-tree": "tree",
    "delivery-truck": "truck",
    "ear-of-corn": "corn",
    "evergreen-tree": "fir tree",
    "fire-engine": "fire truck",
    "flying-disc": "frisbee",
    "flying-saucer": "ufo",
    "folding-hand-fan": "fan",
    "framed-picture": "painting",
    "game-die": "dice",
    "gem-stone": "diamond",
    "glass-of-milk": "milk",
    "globe-showing-europe-africa": "earth",
    "high-voltage": "lightning",
    "hot-beverage": "coffee",
    "hourglass-not-done": "hourglass",
    "kiwi-fruit": "kiwi",
    "lady-beetle": "ladybug",
    "light-bulb": "lamp",
    "locked": "padlock",
    "magnifying-glass-tilted-left": "magnifying glass",
    "mans-shoe": "leather shoe",
    "manual-wheelchair": "wheelchair",
    "meat-on-bone": "meat",
    "motor-boat": "boat",
    "motor-scooter": "scooter",
    "pool-8-ball": "billiard ball",
    "poultry-leg": "drumstick",
    "red-heart": "heart",
    "rescue-workers-helmet": "helmet",
    "satellite-antenna": "satellite dish",
    "sheaf-of-rice": "wheat",
    "sport-utility-vehicle": "suv",
    "straight-ruler": "ruler",
    "studio-microphone": "studio microphone",
    "t-rex": "dinosaur",
    "thong-sandal": "flip flop",
    "womans-boot": "boot",
    "womans-hat": "straw hat",
    "womans-sandal": "sandal",
    "wrapped-gift": "gift",
}


def spoken(name: str) -> str:
    """The words a prompt uses for `name`: `"ear-of-corn"` is "corn", `"red-apple"` is "red apple"."""
    return _SPOKEN.get(name, name.replace("-", " "))
