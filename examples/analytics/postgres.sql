-- Where objects are loaded to. Running this file again changes nothing that is loaded.
CREATE SCHEMA IF NOT EXISTS ferry;
SET search_path = ferry;

-- An object is loaded once: its name is fixed before its first byte is sent, and its contents never change.
CREATE TABLE IF NOT EXISTS objects (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name      text NOT NULL UNIQUE,
    lines     bigint NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS lines (
    object bigint NOT NULL REFERENCES objects ON DELETE CASCADE,
    number integer NOT NULL, -- within its object
    logged_at timestamptz, -- the line's own time, where it has one
    line jsonb NOT NULL,
    PRIMARY KEY (object, number)
);
CREATE INDEX IF NOT EXISTS lines_logged_at ON lines (logged_at);
CREATE INDEX IF NOT EXISTS lines_trace ON lines ((line ->> 'traceId'));

-- CHANGE: which key of your lines holds what. Every question is asked of this view. Here: NestJS access logs
-- ("url", "statusCode", "responseTimeMs"), nested ones ("request", "response", "latency"), and a tag of the
-- form service.host or kube.namespace.service.pod.
CREATE OR REPLACE VIEW events AS
SELECT object,
       number,
       logged_at,
       coalesce(line ->> 'service', split_part(tag, '.', 1)) AS service,
       coalesce(line ->> 'host', split_part(tag, '.', 2)) AS host,
       line ->> 'level' AS level,
       coalesce(line ->> 'message', line ->> 'msg') AS message,
       coalesce(line ->> 'method', line -> 'request' ->> 'method') AS method,
       -- /users/17?page=2 is the route /users/:id
       regexp_replace(
           split_part(coalesce(line ->> 'url', line -> 'request' ->> 'path'), '?', 1),
           '/[0-9]+', '/:id', 'g') AS route,
       CASE WHEN status ~ '^[0-9]{3}$' THEN status::integer END AS status,
       CASE WHEN took ~ '^[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?$' THEN took::double precision END AS took_ms,
       line ->> 'traceId' AS trace
FROM (
    SELECT *,
           regexp_replace(line ->> 'tag', '^kube\.[^.]*\.', '') AS tag,
           coalesce(line ->> 'statusCode', line -> 'response' ->> 'status') AS status,
           coalesce(line ->> 'responseTimeMs', line ->> 'latency') AS took
    FROM lines
) AS found;
