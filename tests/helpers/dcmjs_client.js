// dcmjs-dimse as a client: reads a plan (JSON) from stdin, runs its steps, writes one JSON array of results.
'use strict';
const fs = require('fs');
const path = require('path');
const dimse = require(process.argv[2]);
const { Client, Server, Scp } = dimse;
const { CEchoRequest, CFindRequest, CStoreRequest, CGetRequest, CMoveRequest } = dimse.requests;
const { CStoreResponse } = dimse.responses;
const { PresentationContextResult, SopClass, Status, TransferSyntax } = dimse.constants;

dimse.log.setLevel('error');

function keep(request, folder, into) {
  const dataset = request.getDataset();
  const uid = request.getAffectedSopInstanceUid();
  into.push({ uid, syntax: dataset.getTransferSyntaxUid(), name: dataset.getElement('PatientName') });
  dataset.toFile(path.join(folder, `${uid}.dcm`));
  const response = CStoreResponse.fromRequest(request);
  response.setStatus(Status.Success);
  return response;
}

function listen(port, folder, into) {
  class Receiver extends Scp {
    associationRequested(association) {
      association.getPresentationContexts().forEach(({ id }) => {
        const context = association.getPresentationContext(id);
        const offered = context.getTransferSyntaxUids();
        const taken = offered.find((uid) => Object.values(TransferSyntax).includes(uid));
        context.setResult(
          taken ? PresentationContextResult.Accept : PresentationContextResult.RejectTransferSyntaxesNotSupported,
          taken
        );
      });
      this.sendAssociationAccept();
    }
    cStoreRequest(request, callback) {
      callback(keep(request, folder, into));
    }
    associationReleaseRequested() {
      this.sendAssociationReleaseResponse();
    }
  }
  const server = new Server(Receiver);
  server.on('networkError', () => {});
  server.listen(port);
  return server;
}

const FINDS = {
  PATIENT: (keys) => {
    const request = new CFindRequest(SopClass.PatientRootQueryRetrieveInformationModelFind);
    request.setDataset(new dimse.Dataset({ QueryRetrieveLevel: 'PATIENT', ...keys }));
    return request;
  },
  STUDY: (keys) => CFindRequest.createStudyFindRequest(keys),
  SERIES: (keys) => CFindRequest.createSeriesFindRequest(keys),
  IMAGE: (keys) => CFindRequest.createImageFindRequest(keys),
};
const MAKE = {
  echo: () => [new CEchoRequest()],
  find: (step) => [FINDS[step.level](step.keys)],
  store: (step) => step.files.map((file) => new CStoreRequest(file)),
  get: (step) => [CGetRequest.createStudyGetRequest(step.study)],
  move: (step) => [CMoveRequest.createStudyMoveRequest(step.destination, step.study)],
};

function run(plan, step) {
  return new Promise((resolve) => {
    const told = { do: step.do, statuses: [], answers: [], stored: [], error: null };
    const client = new Client();
    const server = step.do === 'move' ? listen(step.port, step.folder, told.stored) : null;
    for (const request of MAKE[step.do](step)) {
      request.on('response', (response) => {
        told.statuses.push(response.getStatus());
        if (response.hasDataset()) told.answers.push(response.getDataset().getElements());
        if (response.getCompleted) told.counts = [response.getCompleted(), response.getFailures(), response.getWarnings()];
      });
      client.addRequest(request);
    }
    client.on('cStoreRequest', (request, callback) => callback(keep(request, step.folder, told.stored)));
    client.on('associationRejected', (result) => (told.error = `rejected ${JSON.stringify(result)}`));
    client.on('networkError', (error) => (told.error = String(error)));
    client.on('closed', () => {
      if (server) server.close();
      resolve(told);
    });
    const options = { connectTimeout: 5000, associationTimeout: 10000, pduTimeout: 20000 };
    if (plan.tls) {
      const [key, cert, ca] = plan.tls.map((file) => fs.readFileSync(file));
      options.securityOptions = { key, cert, ca, rejectUnauthorized: true };
    }
    if (plan.identity) options.userIdentity = plan.identity;
    client.send(plan.host, plan.port, plan.calling, plan.called, options);
  });
}

(async () => {
  const plan = JSON.parse(fs.readFileSync(0, 'utf8'));
  const told = [];
  for (const step of plan.steps) told.push(await run(plan, step));
  process.stdout.write(JSON.stringify(told), () => process.exit(0));
})();
