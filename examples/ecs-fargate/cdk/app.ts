// The stack of this example: the bucket, the table, the delivery stream, the task's role and the task definition.
// Account, region and names are context values: cdk deploy -c account=… -c region=… -c bucket=…

import { readFileSync } from "node:fs";

import { App, CfnOutput, RemovalPolicy, Stack, type StackProps } from "aws-cdk-lib";
import * as ecs from "aws-cdk-lib/aws-ecs";
import * as firehose from "aws-cdk-lib/aws-kinesisfirehose";
import * as glue from "aws-cdk-lib/aws-glue";
import * as iam from "aws-cdk-lib/aws-iam";
import * as s3 from "aws-cdk-lib/aws-s3";
import type { Construct } from "constructs";

interface Names extends StackProps {
  readonly account: string;
  readonly region: string;
  /** The bucket of the Parquet files. */
  readonly bucket: string;
  /** The delivery stream. */
  readonly stream: string;
  readonly database: string;
  readonly table: string;
  /** The family of the task; its role is named after it. */
  readonly task: string;
}

/** A volume as the API of ECS names its fields. */
interface ApiVolume {
  readonly name: string;
  readonly efsVolumeConfiguration?: { readonly fileSystemId: string };
}

/** The table's columns, as in glue-table.sql. JSON keys are lower-cased on the way in. */
const COLUMNS: [name: string, type: string][] = [
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
];

class Logs extends Stack {
  constructor(scope: Construct, id: string, names: Names) {
    super(scope, id, { env: { account: names.account, region: names.region } });
    const { account, region } = names;

    const bucket = new s3.Bucket(this, "Bucket", {
      bucketName: names.bucket,
      blockPublicAccess: s3.BlockPublicAccess.BLOCK_ALL,
      enforceSSL: true,
      removalPolicy: RemovalPolicy.RETAIN,
    });

    const database = new glue.CfnDatabase(this, "Database", {
      catalogId: account,
      databaseInput: { name: names.database },
    });
    const location = `s3://${names.bucket}/parquet/`;
    const table = new glue.CfnTable(this, "Table", {
      catalogId: account,
      databaseName: names.database,
      tableInput: {
        name: names.table,
        tableType: "EXTERNAL_TABLE",
        partitionKeys: [{ name: "day", type: "string" }],
        storageDescriptor: {
          columns: COLUMNS.map(([name, type]) => ({ name, type })),
          location,
          inputFormat: "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
          outputFormat: "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
          serdeInfo: {
            serializationLibrary: "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe",
          },
        },
        parameters: {
          "projection.enabled": "true",
          "projection.day.type": "date",
          "projection.day.format": "yyyy/MM/dd",
          "projection.day.range": "2025/01/01,NOW",
          "storage.location.template": `${location}\${day}/`,
        },
      },
    });
    table.addResourceDependency(database);

    const deliver = new iam.Role(this, "StreamRole", {
      roleName: `${names.stream}-firehose`,
      assumedBy: new iam.ServicePrincipal("firehose.amazonaws.com", {
        conditions: { StringEquals: { "sts:ExternalId": account } },
      }),
      inlinePolicies: {
        deliver: new iam.PolicyDocument({
          statements: [
            new iam.PolicyStatement({
              sid: "WriteObjects",
              actions: [
                "s3:AbortMultipartUpload",
                "s3:GetBucketLocation",
                "s3:GetObject",
                "s3:ListBucket",
                "s3:ListBucketMultipartUploads",
                "s3:PutObject",
              ],
              resources: [`arn:aws:s3:::${names.bucket}`, `arn:aws:s3:::${names.bucket}/*`],
            }),
            new iam.PolicyStatement({
              sid: "ReadTheTablesColumns",
              actions: ["glue:GetTable", "glue:GetTableVersion", "glue:GetTableVersions"],
              resources: [
                `arn:aws:glue:${region}:${account}:catalog`,
                `arn:aws:glue:${region}:${account}:database/${names.database}`,
                `arn:aws:glue:${region}:${account}:table/${names.database}/${names.table}`,
              ],
            }),
          ],
        }),
      },
    });

    const stream = new firehose.CfnDeliveryStream(this, "Stream", {
      deliveryStreamName: names.stream,
      deliveryStreamType: "DirectPut",
      extendedS3DestinationConfiguration: {
        roleArn: deliver.roleArn,
        bucketArn: bucket.bucketArn,
        prefix: "parquet/!{timestamp:yyyy/MM/dd}/",
        errorOutputPrefix: "failed/!{firehose:error-output-type}/!{timestamp:yyyy/MM/dd}/",
        bufferingHints: { sizeInMBs: 128, intervalInSeconds: 300 },
        compressionFormat: "UNCOMPRESSED",
        dataFormatConversionConfiguration: {
          enabled: true,
          schemaConfiguration: {
            roleArn: deliver.roleArn,
            databaseName: names.database,
            tableName: names.table,
            region,
            versionId: "LATEST",
          },
          inputFormatConfiguration: { deserializer: { openXJsonSerDe: { caseInsensitive: true } } },
          outputFormatConfiguration: { serializer: { parquetSerDe: { compression: "SNAPPY" } } },
        },
      },
    });
    // The role with its policy, and the table, are looked at when the stream is made.
    stream.node.addDependency(deliver, table);

    const send = new iam.Role(this, "TaskRole", {
      roleName: `${names.task}-task`,
      assumedBy: new iam.ServicePrincipal("ecs-tasks.amazonaws.com", {
        conditions: { StringEquals: { "aws:SourceAccount": account } },
      }),
      inlinePolicies: {
        logs: new iam.PolicyDocument({
          statements: [
            new iam.PolicyStatement({
              sid: "DeliverLogs",
              actions: ["firehose:PutRecordBatch"],
              resources: [`arn:aws:firehose:${region}:${account}:deliverystream/${names.stream}`],
            }),
          ],
        }),
      },
    });

    // The containers are those of the JSON beside this folder: there is one place to change them.
    const file = new URL("../../task-definition.json", import.meta.url);
    const text = readFileSync(file, "utf8")
      .replaceAll("123456789012", account)
      .replaceAll("us-east-1", region)
      .replaceAll('"shop-logs"', JSON.stringify(names.stream))
      .replaceAll("shop-api", names.task);
    // Everything has the same name here as in the API, but the ID of a file system. The role is made here.
    const { volumes = [], ...task } = JSON.parse(text);
    const definition = new ecs.CfnTaskDefinition(this, "Task", {
      ...task,
      volumes: volumes.map(({ efsVolumeConfiguration: efs, ...volume }: ApiVolume) => {
        if (efs === undefined) return volume;
        const { fileSystemId, ...rest } = efs;
        return { ...volume, efsVolumeConfiguration: { ...rest, filesystemId: fileSystemId } };
      }),
      taskRoleArn: send.roleArn,
    });

    new CfnOutput(this, "TaskDefinition", { value: definition.ref });
    new CfnOutput(this, "DeliveryStream", { value: stream.ref });
  }
}

const app = new App();
const context = (name: string, otherwise: string): string => app.node.tryGetContext(name) ?? otherwise;
new Logs(app, "FerryLogs", {
  account: context("account", "123456789012"),
  region: context("region", "us-east-1"),
  bucket: context("bucket", "shop-logs"),
  stream: context("stream", "shop-logs"),
  database: context("database", "logs"),
  table: context("table", "shop"),
  task: context("task", "shop-api"),
});
app.synth();
