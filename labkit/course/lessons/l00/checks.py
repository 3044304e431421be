"""Exercises of lesson 00."""

from labkit.course.checks import exercise
from labkit.portraits import ATTRIBUTES, PortraitSpec, caption


def open_attributes(caption):
    """The attributes that a caption leaves open, in the order of ``ATTRIBUTES``."""
    return [name for name in ATTRIBUTES if name not in caption.named]


@exercise("l00.open_attributes", reference=open_attributes)
def check_open_attributes(c, fn):
    c.callable(fn)
    spec = PortraitSpec()
    some = caption(spec, drop=["mood", "skin"])
    got = c.call(fn, some)
    c.instance(got, list)
    c.mistake("l00.named_instead", when=set(got) == set(some.named))
    c.mistake("l00.everything", when=set(got) == set(ATTRIBUTES))
    c.equal(got, ["skin", "mood"])
    c.equal(c.call(fn, caption(spec)), [])
    c.equal(c.call(fn, caption(spec, drop=ATTRIBUTES)), list(ATTRIBUTES))


@check_open_attributes.wrong("l00.named_instead")
def _(caption):
    return [name for name in ATTRIBUTES if name in caption.named]


@check_open_attributes.wrong("l00.everything")
def _(caption):
    return list(ATTRIBUTES)
