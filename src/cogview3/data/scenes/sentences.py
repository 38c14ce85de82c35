"""Sentence patterns of captions: whole captions, lists of objects, what is asked for and denied, noise of web pages.

A pattern's names in braces are filled in by clauses.py, captions.py and brief.py.
"""

from cogview3.data.scenes.wording import phrases

# Comprehensive captions: {things} is "three shapes", {items} the objects, {single} "a single red circle"
PLANS = phrases(
    "{things} {on} {ground}: {items}. *6 | {on} {ground}, {things}: {items}. *2"
    " | {on} {ground} there {are} {things}: {items}. *3 | {items}, {on} {ground}. {things} in all. *2"
    " | {items}. {things} {on} {ground}. | {surface}. {things}: {items}. *2"
    " | {surface}. there {are} {things}: {items}. *2 | there {are} {things}: {items}. {surface}. *2"
    " | {things}: {items}. {surface}. *2 | a picture of {things} {on} {ground}: {items}."
    " | {ground} with {things}: {items}. *2 | the image shows {things} {on} {ground}: {items}. *0.5"
)
SINGLE_PLANS = phrases(
    "{single} {on} {ground}. *6 | {on} {ground}, {single}. *2 | {on} {ground} there is {single}. *2"
    " | {surface}. there is {single}. *2 | there is {single}. {surface}. *2 | {single}. {surface}. *2"
    " | {items} {on} {ground}, nothing else. *1.5 | {items}, alone {on} {ground}. *1.5"
    " | {ground} with {single}. *2 | a picture of {single} {on} {ground}."
)
ITEMS = phrases(
    "{np} {place} *10 | {place} {np} *2 | {np} ({name}) *2 | {np}, {name} *2 | {name}, {np} | {place}, {np}"
)
ORDERS = phrases(
    "{size} {fill} {color} *6 | {size} {color} {fill} *3 | {fill} {size} {color}"
    " | {size} {outline} {fill} {color} *3 | {outline} {size} {fill} {color}"
    " | {size} {color} {outline} {fill} | {size} {fill} {outline} {color} | {color} {fill} {size} *0.3"
    " | {fill} {color} {size} *0.3 | {color} {size} {fill} *0.5"
)
SHARED = {  # of two, three and four objects
    2: phrases("both {words}"),
    3: phrases("all {words} *4 | all three {words}"),
    4: phrases("all {words} *4 | all four {words}"),
}
GROUP_SHARED = {  # after a counted group, in brief captions
    2: phrases("both {words} *3 | both of them {words}"),
    3: phrases("all {words} *4 | all three {words} | all of them {words} | each {words} *0.5"),
    4: phrases("all {words} *4 | all four {words} | all of them {words} | each {words} *0.5"),
}
NONE_OUTLINED = {
    2: phrases("neither outlined *3 | no outlines *2 | without outlines *2 | without borders *0.5"),
    3: phrases("none outlined *4 | no outlines *2 | without outlines *2 | without borders *0.5"),
    4: phrases("none outlined *4 | no outlines *2 | without outlines *2 | without borders *0.5"),
}
REST_NOT_OUTLINED = {  # the number of those without
    1: phrases("the other not outlined *3 | the other without an outline | the other one has no outline"),
    2: phrases("the rest not outlined *3 | the others without outlines *2 | the others have no outline"),
    3: phrases("the rest not outlined *3 | the others without outlines *2 | the others have no outline"),
}
RELATION_SENTENCES = phrases("{a} is {rel} *8 | {a} stands {rel} | {a} sits {rel} *0.5")

# Brief captions: {body} is the list of objects, {ask} what comes before it, {bare} "yellow background"
ASKS = phrases(
    " *60 | draw *5 | please draw | draw me | paint | make | create | generate | show *0.7 | show me *1.5"
    " | give me *0.7 | i want *0.7 | i would like *0.4 | i'd like *0.2 | put *0.3 | place *0.3 | add *0.3"
    " | just *0.3 | a picture of *4 | picture of *1.5 | a picture with | an image of *3 | image of"
    " | an image with | a drawing of *1.5 | a simple drawing of *0.5 | a painting of *0.5"
    " | a photo of *0.5 | an illustration of *0.7 | a scene with | make a picture of *0.7"
    " | draw a picture of *0.5 | create an image of *0.5 | generate an image with *0.5"
    " | a simple picture of *0.3 | there {are} *1.5 | i see *0.2 | pic of | a pic of *0.5 | can i have *0.5"
    " | can i get *0.3 | i need *0.4 | let me see *0.2 | gimme *0.2 | a cartoon of *0.4 | a picture showing *0.3"
    " | a render of *0.2 | an emoji of *0.2 | please make *0.5 | please paint *0.3 | image: *0.2"
)
REQUESTS = phrases(
    "can you draw {body}? *2 | could you draw {body}? | can you make a picture of {body}?"
    " | please make {body} | {body}, please *2"
)
BRIEF_PLANS = phrases(
    "{ask} {body} {on} {ground} *8 | {on} {ground}, {body} | {on} {ground} there {are} {body} *0.5"
    " | {ask} {ground} with {body} *1.5 | {ask} {body} with a {bare} | {ask} {body}, {bare} *2"
    " | {bare}, {body} | {bare} with {body} *0.7 | {ask} {body}. {surface}"
)
SENTENCE_PLANS = phrases("{body} {on} {ground} *4 | {on} {ground}, {body} *2 | {body}. {surface} *3 | {body}, {bare}")
DENIALS = phrases(
    "{text} but no {one} *4 | {text}, no {one} *3 | {text} and no {one} *2 | {text} without {a} *2"
    " | {text}, without {a} | {text} with no {one} | {text}, but no {many} | {text}, no {many} *2"
    " | {text} without any {many} *2"
    " | {text}, but without any {many} | {text} and no {many} | no {many}, just {text} *0.5"
    " | no {one}, only {text} *0.3"
    " | {text}, but not {a} *0.5 | {text}, no {many} please *0.3 | {text}, don't draw any {many} *0.3"
)
NOTHING_ELSE = phrases(
    "{text}, nothing else *3 | {text} and nothing else *3 | only {text} *2 | {text}, no other objects"
)
COUNTED = phrases("{things}: {body} *4 | {things}, {body} | {things} - {body} *0.5")
JOINS = phrases("{most} and {last} *8 | {most}, {last} *3 | {most}, and {last} *2 | {most} & {last} *0.3")
ARTICLES = phrases("a *18 | *6 | one *1.2 | the *0.8")
SINGLE_ARTICLES = phrases("a *16 | *5 | the *0.5")

ALT_PATTERNS = (  # noise around a caption, as pages on the web have it
    "{caption} - stock photo",
    "{caption} stock vector",
    "{caption} | free download",
    "{caption} | Shapes & More",
    "{caption} royalty-free image #{n}",
    "{caption} (IMG_{n}.JPG)",
    "IMG_{n}.jpg {caption}",
    "DSC{n}: {caption}",
    "{caption} https://example.com/p/{n}",
    "www.example.org - {caption}",
    "{caption} #shapes #geometry #art",
    "{caption} #{n} of 5000",
    "{caption} - buy now, {m}% off!",
    "SALE! {caption}, free shipping",
    "{caption} - photo {n} - {y}",
    "{caption}, {y}-0{d}-1{d}",
    "{y}/0{d}/2{d} {caption}",
    "{caption} ... click to enlarge",
    "image may contain: {caption}",
    "{caption} - Wallpaper {n}x{n} HD",
    "Thumbnail for {caption}",
    "{caption}",
    "{caption}!!!",
    "Figure {d}: {caption}",
    "{caption} by user{n}",
    "{caption} clip art, watermarked",
    "Untitled-{d} {caption}",
)
ALT_NUMBERS = {"n": (1000, 9999), "m": (5, 80), "y": (2005, 2024), "d": (1, 9)}  # ranges of the numbers in them
FILE_NAMES = ("{slug}.jpg", "{slug}.png", "{slug}-{n}.jpg", "{slug}_{y}.jpeg", "images/{slug}.webp")
