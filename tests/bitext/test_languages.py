"""Languages: tags of BCP 47 in any spelling, which never fall together, and what names of files say of them."""

import langcodes
import pycountry
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_actor.bitext.language_pairs import find_pair_in_name, make_pair, parse_pair
from rerank_actor.bitext.languages import SCRIPTS, find_language
from rerank_actor.bitext.sources import choose_partitions
from rerank_actor.errors import InputError, JobError

BASES = sorted({code for one in pycountry.languages for code in (one.alpha_3, getattr(one, "alpha_2", one.alpha_3))})
REGIONS = [*(country.alpha_2 for country in pycountry.countries), "419", "001"]
TAGS = st.builds(
    lambda *subtags: "-".join(filter(None, subtags)),
    st.sampled_from(BASES),
    st.sampled_from(["", "", *SCRIPTS]),
    st.sampled_from(["", "", "", *REGIONS]),
    st.sampled_from(["", "", "", "x-own", "1996"]),
)


@st.composite
def spell(draw: st.DrawFn, tag: str) -> str:
    letters = [draw(st.sampled_from([one.lower(), one.upper()])) for one in tag]
    return "".join(draw(st.sampled_from("-_")) if one == "-" else one for one in letters)


@settings(deadline=None)
@given(TAGS, st.data())
def test_language_tag_comes_back_as_it_went_in_however_it_is_spelled(tag: str, data: st.DataObject) -> None:
    pair = make_pair(data.draw(spell(tag)), "x-other", {"x-other": "Other"}, "here")
    assert langcodes.Language.get(pair.source.code, normalize=False) == langcodes.Language.get(tag, normalize=False)
    for name in (pair.name, pair.folder.removeprefix("lang_pair=")):
        assert parse_pair(name, {"x-other": "Other"}, "here") == pair


@settings(deadline=None)
@given(TAGS, TAGS)
def test_two_language_tags_never_share_a_partition(first: str, second: str) -> None:
    languages = [find_language(tag, {}) for tag in (first, second)]
    codes = [language.code for language in languages if language is not None]
    assert (codes[0] == codes[1]) == (first == second)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("deu-eng", "deu-eng"),
        ("zho_hans-eng", "zho_Hans-eng"),
        ("en-pt_br", "en-pt_BR"),
        ("en-zh-CN", "en-zh_CN"),
        ("zh-Hant-en", "zh_Hant-en"),
        ("en-pt-BR", "en-pt_BR"),
        ("en-es-419", "en-es_419"),
    ],
)
def test_language_pair_is_parted_where_only_one_way_gives_two_tags(text: str, name: str) -> None:
    assert parse_pair(text, {}, "here").name == name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("en-pt-br", "may be en and pt_BR or en_PT and br; write en-pt_BR or en_PT-br"),
        ("en-zz", "code `zz` is unknown"),
        ("en-pt_ZB", "code `pt_ZB` is unknown"),
        ("en-zh_CHS", "code `zh_CHS` is unknown"),
        ("pt_br-pt-BR", "are both `pt_BR`"),
        ("english", "is no language pair"),
    ],
)
def test_language_pair_that_cannot_be_told_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_pair(text, {}, "here")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("zho_Hans", "Chinese"),  # as it was when outputs that are there were scored
        ("sr_Latn", "Serbian"),
        ("prs", "Dari"),
        ("iw", "Hebrew"),
        ("pt", "Portuguese"),
        ("pt_BR", "Brazilian Portuguese"),
        ("zh-tw", "Traditional Chinese"),
        ("zh_cn", "Simplified Chinese"),
        ("zh-HK", "Traditional Chinese (Hong Kong)"),
        ("es_419", "Latin American Spanish"),
        ("ar_EG", "Arabic (Egypt)"),
    ],
)
def test_language_is_named_with_its_region(code: str, name: str) -> None:
    language = find_language(code, {})
    assert language is not None
    assert language.name == name


def test_names_that_the_job_gives_hold_for_every_spelling() -> None:
    names = {"PT-br": "Brazilian", "zzx": "Own"}
    found = [find_language(code, names) for code in ("pt_BR", "pt", "zzx", "zzx_Cyrl")]
    assert [(one.name, one.scripts) for one in found if one is not None] == [
        ("Brazilian", ("Latn",)),
        ("Portuguese", ("Latn",)),
        ("Own", ()),
        ("Own", ("Cyrl",)),
    ]


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("tatoeba.deu-eng.tsv", "deu-eng"),
        ("c.en-pt_BR.tsv", "en-pt_BR"),
        ("c.en-zh-cn.tsv", "en-zh_CN"),
        ("c.en-zh_hant.tsv", "en-zh_Hant"),
        ("CCMatrix_v1.en-es_419.txt", "en-es_419"),
        ("europarl-v7-de-en.tsv.gz", "de-en"),
        ("train_en-de_v2.tsv", "en-de"),
        ("en-de_001.tsv", "en-de"),  # a part's number, not the World's German
        ("dev-en-de.tsv", "en-de"),
        ("en-de-test.tsv", "en-de"),
        ("c.en-pt-BR.tsv", "en-pt_BR"),
        ("c.en-pt-br.tsv", None),
        ("de-en-fr.tsv", None),
        ("en-zh_CHS.tsv", None),  # may be cut short
        ("zh_tra-en.tsv", None),
        ("a.deu-eng.b.fra-eng.tsv", None),
    ],
)
def test_name_of_a_file_shows_a_language_pair_or_none(name: str, pair: str | None) -> None:
    found = find_pair_in_name(name, {})
    assert (found.name if found is not None else None) == pair


def test_partitions_are_chosen_in_every_spelling_and_not_cut_short() -> None:
    present = ["en-pt", "en-pt_BR", "en-zh_CN", "en-zh_Hant"]
    assert choose_partitions(["en-pt_br", "EN-zh-cn"], present) == ["en-pt_BR", "en-zh_CN"]
    assert choose_partitions(["en-pt"], present) == ["en-pt"]
    assert choose_partitions(["*-PT"], present) == ["en-pt"]
    assert choose_partitions(["en-pt_br:en-zh-CN"], present) == ["en-pt_BR", "en-zh_CN"]
    with pytest.raises(JobError, match="may be en and pt_BR"):
        choose_partitions(["en-pt-br"], present)
