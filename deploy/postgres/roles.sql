-- Three roles for the catalogue, with the least rights that each needs.
--
--   errata_owner   owns the tables; used by `errata catalog migrate` and by nothing else
--   errata_writer  what the catalogue writer and `errata cases` log in as: reads and writes rows, changes no table
--   errata_keeper  what keepers log in as, to choose who leads: may connect, and sees no table
--
-- Run it once, as a superuser, in the database of the catalogue; a second run changes nothing:
--
--   createdb --encoding=UTF8 errata
--   psql --dbname=errata --file=deploy/postgres/roles.sql
--   psql --dbname=errata --command='\password errata_owner' --command='\password errata_writer'
--   psql --dbname=errata --command='\password errata_keeper'
--
-- Then, and after each new version of errata, as the owner:
--
--   ERRATA_DATABASE_URL=postgresql://errata_owner:…@host/errata errata catalog migrate --grant-to errata_writer
--
-- migrate gives the writer its rights table by table (revisions and dead letters: only to read and add), so they are
-- always those of the schema that is there. Services get errata_writer's URL, keepers errata_keeper's.

BEGIN;

DO $$
BEGIN
    CREATE ROLE errata_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

DO $$
BEGIN
    CREATE ROLE errata_writer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

DO $$
BEGIN
    CREATE ROLE errata_keeper LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- By default everybody may connect, make temporary tables and, before PostgreSQL 15, make tables in public.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO errata_owner, errata_writer, errata_keeper', current_database());
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO errata_owner;
GRANT USAGE ON SCHEMA public TO errata_writer;

COMMIT;
