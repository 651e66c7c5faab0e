# The stack of this example: the bucket, the table, the delivery stream, the task's role and the task definition.
# Policies, trust and containers are those of the JSON in the folder above: there is one place to change them.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region              = var.region
  allowed_account_ids = [var.account]
}

locals {
  # The JSON with the names of this deployment.
  document = {
    for name in [
      "task-definition",
      "task-role-policy",
      "task-role-trust",
      "firehose-role-policy",
      "firehose-role-trust",
    ] : name => replace(replace(replace(replace(
      file("${path.module}/../${name}.json"),
      "123456789012", var.account),
      "us-east-1", var.region),
      "shop-logs", var.name),
      "shop-api", var.task)
  }
  task     = jsondecode(local.document["task-definition"])
  location = "s3://${var.name}/parquet/"
}

resource "aws_s3_bucket" "logs" {
  bucket = var.name
}

resource "aws_s3_bucket_public_access_block" "logs" {
  bucket                  = aws_s3_bucket.logs.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_glue_catalog_database" "logs" {
  name = "logs"
}

resource "aws_glue_catalog_table" "shop" {
  database_name = aws_glue_catalog_database.logs.name
  name          = "shop"
  table_type    = "EXTERNAL_TABLE"

  parameters = {
    "projection.enabled"        = "true"
    "projection.day.type"       = "date"
    "projection.day.format"     = "yyyy/MM/dd"
    "projection.day.range"      = "2025/01/01,NOW"
    "storage.location.template" = "${local.location}$${day}/"
  }

  partition_keys {
    name = "day"
    type = "string"
  }

  storage_descriptor {
    location      = local.location
    input_format  = "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat"
    output_format = "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat"

    ser_de_info {
      serialization_library = "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe"
    }

    dynamic "columns" {
      for_each = var.columns
      content {
        name = columns.value[0]
        type = columns.value[1]
      }
    }
  }
}

resource "aws_iam_role" "firehose" {
  name               = "${var.name}-firehose"
  assume_role_policy = local.document["firehose-role-trust"]
}

resource "aws_iam_role_policy" "firehose" {
  name   = "deliver"
  role   = aws_iam_role.firehose.id
  policy = local.document["firehose-role-policy"]
}

resource "aws_kinesis_firehose_delivery_stream" "logs" {
  name        = var.name
  destination = "extended_s3"

  extended_s3_configuration {
    role_arn            = aws_iam_role.firehose.arn
    bucket_arn          = aws_s3_bucket.logs.arn
    prefix              = "parquet/!{timestamp:yyyy/MM/dd}/"
    error_output_prefix = "failed/!{firehose:error-output-type}/!{timestamp:yyyy/MM/dd}/"
    buffering_size      = 128
    buffering_interval  = 300
    compression_format  = "UNCOMPRESSED"

    data_format_conversion_configuration {
      enabled = true

      input_format_configuration {
        deserializer {
          open_x_json_ser_de {
            case_insensitive = true
          }
        }
      }

      output_format_configuration {
        serializer {
          parquet_ser_de {
            compression = "SNAPPY"
          }
        }
      }

      schema_configuration {
        role_arn      = aws_iam_role.firehose.arn
        database_name = aws_glue_catalog_table.shop.database_name
        table_name    = aws_glue_catalog_table.shop.name
        region        = var.region
        version_id    = "LATEST"
      }
    }
  }

  # The role is tried when the stream is made.
  depends_on = [aws_iam_role_policy.firehose]
}

resource "aws_iam_role" "task" {
  name               = "${var.task}-task"
  assume_role_policy = local.document["task-role-trust"]
}

resource "aws_iam_role_policy" "task" {
  name   = "logs"
  role   = aws_iam_role.task.id
  policy = local.document["task-role-policy"]
}

resource "aws_ecs_task_definition" "task" {
  family                   = local.task.family
  requires_compatibilities = local.task.requiresCompatibilities
  network_mode             = local.task.networkMode
  cpu                      = local.task.cpu
  memory                   = local.task.memory
  execution_role_arn       = local.task.executionRoleArn
  task_role_arn            = aws_iam_role.task.arn
  container_definitions    = jsonencode(local.task.containerDefinitions)

  dynamic "volume" {
    for_each = try(local.task.volumes, [])
    content {
      name = volume.value.name

      dynamic "efs_volume_configuration" {
        for_each = try([volume.value.efsVolumeConfiguration], [])
        content {
          file_system_id     = efs_volume_configuration.value.fileSystemId
          root_directory     = try(efs_volume_configuration.value.rootDirectory, null)
          transit_encryption = try(efs_volume_configuration.value.transitEncryption, null)
        }
      }
    }
  }
}
