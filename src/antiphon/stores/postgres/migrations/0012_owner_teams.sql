-- serves: 4
-- The team in the newest token of each owner whose name and team come from claims. A team's limits of stored data
-- count the data of these owners together.
CREATE TABLE owner_teams (
  owner text NOT NULL PRIMARY KEY,
  team text NOT NULL
);
CREATE INDEX owner_teams_team ON owner_teams (team);
