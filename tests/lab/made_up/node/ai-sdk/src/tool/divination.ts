export const divination = { type: 'divination', cards: 3 };
