-- The view "events" of postgres.sql, over files. CHANGE: which key of your lines holds what, as there.
SET TimeZone = 'UTC';
CREATE OR REPLACE VIEW events AS
SELECT file AS object,
       logged_at,
       coalesce(line ->> 'service', split_part(tag, '.', 1)) AS service,
       coalesce(line ->> 'host', split_part(tag, '.', 2)) AS host,
       line ->> 'level' AS level,
       coalesce(line ->> 'message', line ->> 'msg') AS message,
       coalesce(line ->> 'method', line -> 'request' ->> 'method') AS method,
       regexp_replace(
           split_part(coalesce(line ->> 'url', line -> 'request' ->> 'path'), '?', 1),
           '/[0-9]+', '/:id', 'g') AS route,
       try_cast(coalesce(line ->> 'statusCode', line -> 'response' ->> 'status') AS integer) AS status,
       try_cast(coalesce(line ->> 'responseTimeMs', line ->> 'latency') AS double) AS took_ms,
       line ->> 'traceId' AS trace
FROM (
    SELECT filename AS file,
           json AS line,
           try_cast(json ->> 'time' AS timestamptz)::timestamp AS logged_at,
           regexp_replace(json ->> 'tag', '^kube\.[^.]*\.', '') AS tag
    FROM read_ndjson_objects(getvariable('files'), filename = true, maximum_object_size = 67108864)
) AS found;
