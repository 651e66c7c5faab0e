-- In Athena: the table that Firehose takes its columns from, and that is queried later.
-- JSON keys are lower-cased on the way in, so traceId is traceid here.
CREATE EXTERNAL TABLE logs.shop (
  `timestamp`      timestamp,
  level            string,
  context          string,
  message          string,
  traceid          string,
  method           string,
  url              string,
  statuscode       int,
  responsetimems   double,
  useragent        string,
  ip               string,
  stack            string,
  seq              bigint,
  log              string,
  container_id     string,
  container_name   string,
  source           string
)
PARTITIONED BY (day string)
STORED AS PARQUET
LOCATION 's3://shop-logs/parquet/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.day.type' = 'date',
  'projection.day.format' = 'yyyy/MM/dd',
  'projection.day.range' = '2025/01/01,NOW',
  'storage.location.template' = 's3://shop-logs/parquet/${day}/'
);
