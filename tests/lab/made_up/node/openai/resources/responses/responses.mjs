export class Responses {
  create(body, options) {
    return this._client.post('/responses', { body, ...options });
  }
  omen(omenID, options) {
    return this._client.get(path`/omens/${omenID}`, options);
  }
}
