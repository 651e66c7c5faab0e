-- What happened to one request, in order, on every host? Parameter: trace.
SELECT logged_at, service, host, level, method, route, status, took_ms, message
FROM events
WHERE trace = $trace
ORDER BY logged_at, status NULLS FIRST
