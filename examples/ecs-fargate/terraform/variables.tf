variable "account" {
  description = "The AWS account"
  type        = string
}

variable "region" {
  description = "The region of the stream, the bucket and the task"
  type        = string
  default     = "us-east-1"
}

variable "name" {
  description = "The name of the delivery stream and of the bucket, which must be unique in all of AWS"
  type        = string
  default     = "shop-logs"
}

variable "task" {
  description = "The family of the task, after which its role is named"
  type        = string
  default     = "shop-api"
}

# The columns of the Parquet files, as in glue-table.sql. JSON keys are lower-cased on the way in.
variable "columns" {
  description = "Name and type of each column"
  type        = list(tuple([string, string]))
  default = [
    ["timestamp", "timestamp"],
    ["level", "string"],
    ["context", "string"],
    ["message", "string"],
    ["traceid", "string"],
    ["method", "string"],
    ["url", "string"],
    ["statuscode", "int"],
    ["responsetimems", "double"],
    ["useragent", "string"],
    ["ip", "string"],
    ["stack", "string"],
    ["seq", "bigint"],
    ["log", "string"],
    ["container_id", "string"],
    ["container_name", "string"],
    ["source", "string"],
  ]
}
