"""Three rankings of chunks in one list, and the files that a filter leaves out."""

from __future__ import annotations

from antiphon.console.views.store_search import ChunkTextJson, SearchResultJson, left_out, merged
from antiphon.types.search import Filter


def hit(name: str, score: float, **attributes: int) -> SearchResultJson:
    content: list[ChunkTextJson] = [{"text": f"text of {name}"}]
    return {"file_id": name, "filename": f"{name}.txt", "score": score, "attributes": attributes, "content": content}


RANKINGS = {
    "both": [hit("a", 1.0), hit("b", 0.5), hit("c", 0.4)],
    "words": [hit("c", 0.3), hit("a", 0.2)],
    "meaning": [hit("b", 0.9), hit("a", 0.8), hit("d", 0.1)],
}


def test_a_chunk_has_its_place_and_score_in_each_ranking() -> None:
    hits = merged(RANKINGS, 2, 0.0, "both")
    assert [one.file_id for one in hits] == ["a", "b", "c"], "d is among the first two of no ranking"
    assert hits[0].places == {"both": (1, 1.0), "words": (2, 0.2), "meaning": (2, 0.8)}
    assert "words" not in hits[1].places
    assert [one.found for one in hits] == [True, True, False], "a client asks for two results"


def test_the_least_score_applies_to_the_ranking_by_both() -> None:
    assert [one.file_id for one in merged(RANKINGS, 10, 0.45, "both") if one.found] == ["a", "b"]


def test_the_order_is_that_of_the_chosen_ranking() -> None:
    assert [one.file_id for one in merged(RANKINGS, 10, 0.0, "words")] == ["c", "a", "b", "d"]
    assert [one.file_id for one in merged(RANKINGS, 10, 0.0, "meaning")] == ["b", "a", "d", "c"]


def test_a_file_is_left_out_once_with_the_score_of_its_best_chunk() -> None:
    ranking = [hit("a", 0.9, year=2020), hit("b", 0.8, year=2021), hit("a", 0.7, year=2020)]
    found = left_out(ranking, Filter("eq", "year", 2021))
    assert [(one.file_id, one.score, one.reason) for one in found] == [("a", 0.9, "year = 2021 fails: 'year' is 2020")]
