-- serves: 12
-- The team in the newest token of each owner whose name and team come from claims. A team's limits of stored data
-- count the data of these owners together.
CREATE TABLE owner_teams (
  owner TEXT NOT NULL PRIMARY KEY,
  team TEXT NOT NULL
);
CREATE INDEX owner_teams_team ON owner_teams (team);
